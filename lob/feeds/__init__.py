"""Recorded exchange files in, batches of update rows out: one module per feed.

Importing a reader's module makes its feed known.
"""

from lob.feeds import (
    binance,
    bybit,
    coinapi,
    coinbase,
    databento,
    hftbacktest,
    kraken,
    lobster,
    npy,
    okx,
    tardis,
)
from lob.feeds.batch import FEEDS, find_feed

__all__ = [
    "FEEDS",
    "binance",
    "bybit",
    "coinapi",
    "coinbase",
    "databento",
    "find_feed",
    "hftbacktest",
    "kraken",
    "lobster",
    "npy",
    "okx",
    "tardis",
]
