"""Recorded books order by order, through their readers, against what others say of them.

Coinbase: the exchange's book after the last update. Shanghai: its snapshots of ten levels. CME: the
book of dictionaries, through an auction of 20 minutes.
"""

import csv
import gzip
import io
import json
import zipfile
from collections import Counter, defaultdict

import numpy as np
import pytest
import zstandard
from reference_book import ReferenceBook, count_in_order

from lob.book.order_book import COUNTERS, OrderBook
from lob.book.order_table import LOTS, PRICE, SIDE_PLUS_ONE
from lob.feeds.batch import ADD, MATCH, SET, SNAPSHOT, SUB
from lob.feeds.coinapi import read_coinapi

pytestmark = pytest.mark.recorded


def run_book(batches, depth: int, ticks: float, lots: float, **settings):
    """Apply batches with so many ticks and lots in 1; return the book and its states."""
    written: list[list[np.ndarray]] = []
    book = OrderBook(
        depth, 1.0, lambda out: written.append([array.copy() for array in out]), **settings
    )
    for batch in batches:
        units = (
            np.rint(values * scale).astype(np.int64)
            for values, scale in ((batch.price, ticks), (batch.size, lots))
        )
        columns = batch.time_ns, batch.message, batch.update_type, batch.is_buy, *units
        book.apply(*columns, batch.order_id)
    book.finish()
    return book, [np.concatenate(column) for column in zip(*written, strict=True)]


def test_coinbase_closing_book_is_the_exchange_s_order_by_order(recorded) -> None:
    files = sorted((recorded / "coinapi" / "BTCUSD_COINBASE_L3").glob("*"))
    book, _ = run_book(read_coinapi(files), 10, 1e2, 1e8)
    slots = book.orders[book.orders[:, SIDE_PLUS_ONE] != 0]
    found = Counter(map(tuple, slots[:, [SIDE_PLUS_ONE, PRICE, LOTS]].tolist()))
    oracle = recorded / "oracles" / "BTCUSD_COINBASE_L3_closing_book.json.gz"
    told = json.loads(gzip.decompress(oracle.read_bytes()))
    expected = Counter(
        (side_plus_one, round(float(price) * 1e2), round(float(size) * 1e8))
        for side_plus_one, side in ((1, "bids"), (2, "asks"))
        for price, size, _ in told[side]
    )
    assert expected.total() == 66_833
    assert found == expected


def test_shanghai_snapshots_are_states_to_ten_levels(recorded) -> None:
    """Each snapshot of continuous trading is a state at its traded volume, in the same order.

    Here each row after the opening is a message of its own, as it was sent: two of the snapshots
    were taken between rows of one time.
    """
    oracle = zipfile.ZipFile(recorded / "oracles" / "SSE_600519_20230201.zip")
    tables = {
        name: list(csv.DictReader(io.TextIOWrapper(oracle.open(f"20230201/{name}.csv"))))
        for name in ("snapshot", "trade")
    }
    before = [int(row["TradVolume"]) for row in tables["trade"] if row["TradTime"] < "09:30"]
    (batch,) = read_coinapi([recorded / "coinapi" / "SSE_600519" / "20230201.csv.gz"])
    number = np.cumsum(batch.update_type != SNAPSHOT)
    _, (prices, sizes, *_) = run_book([batch._replace(message=number)], 20, 1e2, 1)
    assert len(prices) == number[-1] + 1, "each message leaves a state"
    matched = np.where(batch.update_type == MATCH, batch.size, 0).astype(np.int64)
    volume = sum(before) + np.cumsum(matched)[np.flatnonzero(number == 0)[-1] :]
    states = defaultdict(list)
    levels = zip(volume.tolist(), prices.tolist(), sizes.astype(np.int64).tolist(), strict=True)
    for number, (traded, ticks, lots) in enumerate(levels):
        states[traded, *ticks, *lots].append(number)
    wanted = []
    ranks = [("Bid", rank) for rank in range(10, 0, -1)] + [("Ask", rank) for rank in range(1, 11)]
    for row in tables["snapshot"]:
        lots = [int(row[f"{side}Volume{rank}"] or 0) for side, rank in ranks]
        continuous = row["InstruStatus"] == "TRADE" and row["UpdateTime"] >= "09:30"
        if not continuous or not all(lots):
            continue
        ticks = [round(float(row[f"{side}Price{rank}"]) * 100) for side, rank in ranks]
        wanted.append((int(row["TradVolume"]), *ticks, *lots))
    assert count_in_order(states, wanted) == (4_841, 4_841)


def read_mbo(file):
    """Yield CME's rows order by order: time, whether a message ends, and a row of the book."""
    dbn = pytest.importorskip("databento_dbn")
    decoder = dbn.DBNDecoder()
    decoder.write(zstandard.ZstdDecompressor().stream_reader(file.open("rb")).read())
    kinds = {"A": ADD, "M": SET, "C": SUB}
    for record in decoder.decode():
        if not isinstance(record, dbn.MBOMsg):
            continue
        flags, action = int(record.flags), str(record.action)
        kind = SNAPSHOT if flags & 32 else kinds.get(action)
        row = (kind, str(record.side) == "B", record.price, record.size, record.order_id)
        yield record.ts_event, flags & 128, row


def test_an_auction_evicts_no_level_of_a_book_order_by_order(recorded) -> None:
    """Its orders cross for 1,204 s. No state is lost after it, and none is made up."""
    rows, number = [], 0
    reference = ReferenceBook(40, by_order=True, max_crossed_ns=10**18, max_gap_ns=10**18)
    for file in sorted((recorded / "formats").glob("databento_ESH4_*.dbn.zst")):
        message: list = []
        for time, ends, row in read_mbo(file):
            if row[0] is not None:
                message.append(row)
            if ends and message:
                reference.take_message(time, message)
                rows += [(reference.time, number, *row) for row in message]
                message, number = [], number + 1
        if message:  # the snapshot ends with its file
            reference.take_message(time, message)
            rows += [(reference.time, number, *row) for row in message]
            number += 1
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    written: list[list[np.ndarray]] = []
    book = OrderBook(40, 1.0, lambda out: written.append([array.copy() for array in out]))
    times, numbers, kinds, is_buy, prices, sizes, ids = columns
    ticks = prices // 250_000_000  # of a quarter of a point
    book.apply(times, numbers, kinds.astype(np.uint8), is_buy, ticks, sizes, ids)
    book.finish()
    found = [np.concatenate(column) for column in zip(*written, strict=True)]
    counters = dict(zip(COUNTERS, book.counters.tolist(), strict=True))
    assert (counters["ghosts_evicted"], counters["unknown"]) == (0, 0)
    assert len(found[0]) == len(reference.states) == 46_132
    for state, ticks_found, lots_found in zip(reference.states, *found[:2], strict=True):
        assert (np.array(state[0]) // 250_000_000 == ticks_found).all()
        assert (np.array(state[1]) == lots_found).all()
