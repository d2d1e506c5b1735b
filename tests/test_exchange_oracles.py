"""The kernel on recorded exchange data against what the exchange itself says about the book.

Binance: `bookTicker`. Kraken and OKX: a CRC32 in every message. Shanghai: snapshots of ten levels a
side.
"""

import bisect
import gzip
import io
import itertools
import re
import zipfile
import zlib
from collections import Counter, defaultdict
from decimal import Decimal
from pathlib import Path

import numpy as np
import orjson
import pytest
import zstandard
from reference_book import count_in_order

from lob.book.order_book import COUNTERS, OrderBook
from lob.book.price_levels import ASK, BID
from lob.config import InputError
from lob.feeds.batch import ADD, DELETE, FEEDS, MATCH, find_feed

pytestmark = pytest.mark.recorded
FOREVER_MS = 10**12
# Files of one stream: depth messages that leave a state, and how many of them differ from
# bookTicker.
BINANCE = {
    "cm/btcusd_perp_2024080[89].gz": (44_772, 0),
    "spot/btcusdt_2024080[89].gz": (6_493, 2),
    "usdm/btcusdt_2023040[45].dat.gz": (16_110, 0),
    "usdm/btcusdt_2024071[89].gz": (9_017, 0),
    "usdm/ethusdt_2024071[89].gz": (8_924, 0),
    "usdm/btcusdt_20240808.gz": (6_547, 0),
}


def count_exceptions(book):
    counters = dict(zip(COUNTERS, book.counters.tolist(), strict=True))
    return {
        name: counters[name]
        for name in ("gaps", "snapshots", "crossed_states", "thin_states", "ghosts_evicted")
    }


@pytest.mark.parametrize("pattern", BINANCE)
def test_binance_best_levels_equal_book_ticker(recorded, pattern: str) -> None:
    """Best bid and ask after update u are those of the last bookTicker whose u is not above it."""
    files = sorted((recorded / "binance").glob(pattern))
    assert {find_feed(file) for file in files} == {"binance"}
    written = []
    book = OrderBook(2, 1e-8, lambda out: written.append([array.copy() for array in out]))
    for batch in FEEDS["binance"].read(files):
        ticks, lots = (
            np.rint(values * scale).astype(np.int64)
            for values, scale in ((batch.price, 1e2), (batch.size, 1e8))
        )
        book.apply(batch.time_ns, batch.message, batch.update_type, batch.is_buy, ticks, lots)
    book.finish()
    ticks, sizes, times = (np.concatenate([out[index] for out in written]) for index in range(3))
    states, differ = BINANCE[pattern]
    assert count_exceptions(book) == dict.fromkeys(count_exceptions(book), 0) | {"snapshots": 1}
    assert len(ticks) == states

    updates, tickers = [], []
    for file in files:
        for line in gzip.decompress(file.read_bytes()).splitlines():
            message = orjson.loads(line[line.index(b" ") :])
            message = message.get("data", message)
            if message.get("e") == "depthUpdate":
                updates.append((message["u"], message.get("T", message["E"])))
            elif "A" in message and "B" in message:
                tickers.append((message["u"], *(float(message[name]) for name in "bBaA")))
    updates = updates[-states:]  # those before it are older than the snapshot
    assert times.tolist() == [time * 10**6 for _, time in updates]
    tickers.sort()
    at_or_below = [bisect.bisect_right(tickers, (u, np.inf)) - 1 for u, _ in updates]
    expected = np.array([tickers[index][1:] for index in at_or_below])
    np.testing.assert_array_less(-1, at_or_below)
    found = np.stack([ticks[:, 0] / 100, sizes[:, 0], ticks[:, 1] / 100, sizes[:, 1]], axis=1)
    assert (found.astype(np.float32) != expected.astype(np.float32)).any(axis=1).sum() == differ


def read_recording(file):
    """Yield the JSON messages received in a cryptofeed recording."""
    for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file.open("rb"))):
        record = orjson.loads(line)
        if record["t"] == "recv":
            yield orjson.loads(record["data"])


def read_books(feed: str, file: Path, symbol: str, digits: tuple[int, int], counted: Counter):
    """Yield the book in the kernel after each message of a symbol, as its reader gives it.

    What the reader counts is added to `counted`.

    Prices and sizes have fixed numbers of digits after the point, which give tick and lot size. The
    book is so deep that no state is complete: the ticks of prices as sent need not fit a written
    state's int32.
    """
    book = OrderBook(10**5, 1.0, lambda out: None, max_crossed_ms=FOREVER_MS, capacity=2)
    for batch in FEEDS[feed].read([file], symbol):
        counted.update(batch.skipped or {})
        ticks, lots = (
            np.rint(values * 10.0**count).astype(np.int64)
            for values, count in zip((batch.price, batch.size), digits, strict=True)
        )
        columns = batch.time_ns, batch.message, batch.update_type, batch.is_buy, ticks, lots
        ends = np.flatnonzero(np.diff(batch.message)) + 1
        for begin, end in itertools.pairwise([0, *ends, len(ticks)]):
            book.apply(*(column[begin:end] for column in columns))
            yield book


def best(book: OrderBook, side: int, count: int) -> list[tuple[int, int]]:
    return list(zip(*(array.tolist() for array in book.levels(side, count)), strict=True))


def count_digits(text: str) -> int:
    return len(text.partition(".")[2])


def test_kraken_checksums_match_after_every_message(recorded) -> None:
    file = recorded / "kraken" / "KRAKEN.jsonl.zst"
    assert find_feed(file) == "kraken"
    digits, checksums = {}, defaultdict(list)
    for message in read_recording(file):
        if isinstance(message, list) and message[-2] == "book-1000":
            parts = {name: value for part in message[1:-2] for name, value in part.items()}
            if "as" in parts:
                digits[message[-1]] = tuple(map(count_digits, parts["as"][0][:2]))
            checksums[message[-1]].append(int(parts["c"]) if "c" in parts else None)
    right, counted = 0, Counter()
    for pair, sent in checksums.items():
        for book, checksum in zip(
            read_books("kraken", file, pair, digits[pair], counted), sent, strict=True
        ):
            # The checksum is over the numbers as sent, without the dot and leading zeros: ticks,
            # lots.
            levels = [*best(book, ASK, 10), *best(book, BID, 10)]
            text = "".join(f"{ticks}{lots}" for ticks, lots in levels)
            right += zlib.crc32(text.encode()) == checksum
            assert max(len(book.levels(side, 2000)[0]) for side in (BID, ASK)) <= 1000
    assert len(checksums) == 10
    assert right == 4_269
    # The reader has verified them too.
    assert counted.pop("lines_passed_by") > 0  # trades, and books of other pairs
    assert counted == {"checksums_checked": 4_269, "checksums_differ": 0}


def test_okx_checksums_match_after_every_message(recorded) -> None:
    def as_sent(units: int, digits: int) -> str:
        return f"{Decimal(units).scaleb(-digits).normalize():f}"

    file = recorded / "okx" / "OKX.jsonl.zst"
    assert find_feed(file) == "okx"
    with pytest.raises(InputError, match="holds BTC-USD-220527, BTC-USDT, UNI-USD-SWAP: take one"):
        list(FEEDS["okx"].read([file]))
    checksums = defaultdict(list)
    for message in read_recording(file):
        if "action" in message:
            checksums[message["arg"]["instId"]] += [
                part["checksum"] % 2**32 for part in message["data"]
            ]
    right, counted = 0, Counter()
    for symbol, sent in checksums.items():
        for book, checksum in zip(
            read_books("okx", file, symbol, (8, 8), counted), sent, strict=True
        ):
            sides = best(book, BID, 25), best(book, ASK, 25)
            texts = [
                f"{as_sent(ticks, 8)}:{as_sent(lots, 8)}"
                for rank in range(25)
                for side in sides
                for ticks, lots in side[rank : rank + 1]
            ]
            right += zlib.crc32(":".join(texts).encode()) == checksum
    assert len(checksums) == 3
    assert right == 290
    assert counted.pop("lines_passed_by") > 0  # trades, and books of other pairs
    assert counted == {"checksums_checked": 290, "checksums_differ": 0}


def test_shanghai_order_by_order_matches_ten_level_snapshots(recorded) -> None:
    """In continuous trading each snapshot is a state of the kernel at its traded volume.

    These states come in the order of the snapshots.
    """
    events, snapshots = [], []
    with zipfile.ZipFile(recorded / "sse" / "AX_sbe_sse_600519.zip") as archive:
        for line in archive.read(archive.namelist()[0]).splitlines():
            fields = {
                name: int(value)
                for name, value in re.findall(r"([\w.\[\]]+)=(-?\d+)", line.decode())
            }
            (snapshots if fields["MsgType"] == 111 else events).append(fields)
    events.sort(key=lambda event: event["BizIndex"])
    rows, traded = [], [0]
    for number, event in enumerate(events):
        if event["MsgType"] == 192:
            kind = {65: ADD, 68: DELETE}[event["OrdType"]]
            rows.append(
                (
                    number,
                    kind,
                    event["Side"] == 66,
                    event["Price"],
                    event["OrderQty"],
                    event["OrderNo"],
                )
            )
            traded.append(traded[-1])
            continue
        fill = (event["LastPx"], event["LastQty"])
        if event["ExecType"] in (66, 78):  # the buyer came later, or an auction
            rows.append((number, MATCH, False, *fill, event["OfferApplSeqNum"]))
        if event["ExecType"] in (83, 78):
            rows.append((number, MATCH, True, *fill, event["BidApplSeqNum"]))
        traded.append(traded[-1] + event["LastQty"])
    written = []
    book = OrderBook(
        20,
        1e-3,
        lambda out: written.append([array.copy() for array in out]),
        max_crossed_ms=FOREVER_MS,
        max_gap_seconds=10**8,
    )
    number, kind, is_buy, ticks, lots, order_id = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    # Each message has its number for its time.
    book.apply(number, number, kind.astype(np.uint8), is_buy.astype(bool), ticks, lots, order_id)
    book.finish()
    assert (
        book.counters[
            [COUNTERS.index(name) for name in ("unknown", "duplicate_orders", "overdrawn")]
        ].sum()
        == 0
    )

    # (traded volume, levels) -> numbers of the messages that leave this state.
    states = defaultdict(list)
    for out in written:
        for prices, sizes, number in zip(
            out[0], np.rint(out[1] * 1000).astype(int), out[2], strict=True
        ):
            states[traded[number + 1], *prices.tolist(), *sizes.tolist()].append(number)
    wanted = []
    ranks = [("Bid", rank) for rank in range(9, -1, -1)] + [("Ask", rank) for rank in range(10)]
    for snapshot in snapshots:
        prices, sizes = (
            [snapshot[f"{side}Level[{rank}].{name}"] for side, rank in ranks]
            for name in ("Price", "Qty")
        )
        if snapshot["TradingPhase"] != 2 or not all(sizes):
            continue
        wanted.append((snapshot["TotalVolumeTrade"], *prices, *sizes))
    assert count_in_order(states, wanted) == (4_864, 4_864)
