"""Recorded exchange files in, batches of update rows out: one module per feed.

Importing a reader's module makes its feed known.
"""

from lob.feeds import binance, coinapi, npy, tardis
from lob.feeds.batch import FEEDS, find_feed

__all__ = ["FEEDS", "binance", "coinapi", "find_feed", "npy", "tardis"]
