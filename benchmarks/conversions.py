"""Public recordings of other layouts, converted to rows as CoinAPI's `limitbook_full` has them.

Each function takes the files that benchmarks/originals.py names and returns a frame of the columns
`time` (datetime64, UTC), `type`, `is_buy` (1 or 0), `price`, `size` and, where orders are known,
`order_id`, in the order in which the market told them. `write_coinapi` writes it.
"""

import tarfile
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import pandas as pd

DECIMALS = 8  # of prices and sizes; no recording here has more
COLUMNS = ["time", "type", "is_buy", "price", "size"]
ORDER_COLUMNS = [*COLUMNS, "order_id"]
# Shanghai trades continuously between these local times, with a break at noon. Before and after it
# holds auctions, in which bids and asks cross.
OPENING, CLOSING = pd.Timedelta("09:30:00"), pd.Timedelta("14:57:00")


def write_coinapi(rows: pd.DataFrame) -> bytes:
    """Return the text of a `limitbook_full` file. Both of its times are the exchange's."""
    times = np.char.add(np.datetime_as_string(rows["time"].to_numpy(), unit="us"), "0")
    texts = {
        "time_exchange": times,
        "time_coinapi": times,
        "update_type": rows["type"],
        "is_buy": rows["is_buy"],
        "entry_px": write_decimals(rows["price"]),
        "entry_sx": write_decimals(rows["size"]),
    }
    if "order_id" in rows:
        texts["order_id"] = rows["order_id"]
    return pd.DataFrame(texts).to_csv(sep=";", index=False, lineterminator="\n").encode()


def write_decimals(numbers: pd.Series) -> pd.Series:
    """Return decimal texts without trailing zeros, such as 0.00000001 instead of 1e-08."""
    texts = np.char.mod(f"%.{DECIMALS}f", numbers.to_numpy(float))
    return pd.Series(texts, numbers.index).str.rstrip("0").str.rstrip(".")


def convert_gdax(files: Sequence[Path]) -> pd.DataFrame:
    """Bids and asks of a snapshot, then updates of levels: timothyyu/gdax-orderbook-ml.

    The snapshot has no time. It was sent before the first update, and is put 1 ms before it.
    """
    bids, asks, *parts = (pd.read_csv(file) for file in files)
    snapshot, updates = pd.concat([bids, asks]), pd.concat(parts)
    updates["time"] = pd.to_datetime(updates["time"]).dt.tz_localize(None)
    snapshot["time"] = updates["time"].iloc[0] - pd.Timedelta(milliseconds=1)
    rows = pd.concat([snapshot.assign(type="SNAPSHOT"), updates.assign(type="SET")])
    rows["is_buy"] = (rows["side"] == "buy").astype(int)
    return rows[COLUMNS].reset_index(drop=True)


def convert_orderbookmdp(files: Sequence[Path]) -> pd.DataFrame:
    """A book of single orders and the messages of Coinbase's `full` channel: orderbookmdp 0.1.2.

    Orders are numbered as they come. The snapshot is put 1 microsecond before the first message.
    A message `done` of an order that never rested, or that was filled, says nothing of the book.
    """
    with tarfile.open(files[0]) as archive:

        def read(name: str):
            member = archive.extractfile(f"orderbookmdp-0.1.2/tests/testdata/{name}.json")
            assert member is not None
            return orjson.loads(member.read())

        book, messages = read("beginning_level_3"), read("messages")
    numbers: dict[str, int] = {}
    rows: list[tuple] = []
    first = np.datetime64(messages[0]["time"].rstrip("Z"), "us") - 1
    for side, is_buy in (("bids", 1), ("asks", 0)):
        for price, size, order in book[side]:
            numbers[order] = len(numbers) + 1
            rows.append((first, "SNAPSHOT", is_buy, price, size, numbers[order]))
    for message in messages:
        kind = message["type"]
        order = message["maker_order_id" if kind == "match" else "order_id"]
        if kind == "open":
            numbers[order] = len(numbers) + 1
            change, size = "ADD", message["remaining_size"]
        elif kind == "match":
            change, size = "MATCH", message["size"]
        elif kind == "done" and order in numbers and float(message["remaining_size"]) > 0:
            change, size = "DELETE", message["remaining_size"]
        else:
            continue
        time = np.datetime64(message["time"].rstrip("Z"), "us")
        is_buy = int(message["side"] == "buy")
        rows.append((time, change, is_buy, message["price"], size, numbers[order]))
    return pd.DataFrame(rows, columns=ORDER_COLUMNS)


def convert_obadiah(files: Sequence[Path], table: str) -> pd.DataFrame:
    """Changes of levels in a table of an R file: petr-fedorov/obadiah.

    The rows of the first time are the whole book.
    """
    import rdata  # not among the requirements: two recordings need it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has no constructor for R's times: they stay seconds
        found = rdata.read_rda(files[0])[table]
    seconds = found["timestamp"].to_numpy(float)
    rows = {
        "time": np.round(seconds * 1e6).astype("datetime64[us]"),
        "type": np.where(seconds == seconds[0], "SNAPSHOT", "SET"),
        "is_buy": (found["side"] == "bid").to_numpy(int),
        "price": found["price"].to_numpy(),
        "size": found["volume"].to_numpy(),
    }
    return pd.DataFrame(rows)


def convert_axorderbook(files: Sequence[Path]) -> pd.DataFrame:
    """Orders and executions of Shanghai, a line of `key=value` each: fpga2u/AXOrderBook.

    The recording is of 7 February 2023. Its times lack the day; they are in units of 10 ms.
    Prices and sizes are in thousandths. Letters are written as their codes.
    """
    with zipfile.ZipFile(files[0]) as archive:
        lines = archive.read(archive.namelist()[0]).decode().splitlines()
    found: dict[str, list[dict[str, str]]] = {"192": [], "191": []}
    for line in lines:
        values = dict(word.split("=", 1) for word in line.lstrip("/").split() if "=" in word)
        found.get(values.get("MsgType", ""), []).append(values)
    orders, trades = pd.DataFrame(found["192"]), pd.DataFrame(found["191"])
    for events in (orders, trades):
        clock = events["TransactTime"].str.zfill(8)
        digits = clock.str.extract(r"(..)(..)(..)(..)")
        texts = digits[0] + ":" + digits[1] + ":" + digits[2] + "." + digits[3]
        events["time"] = pd.Timestamp("2023-02-07") + pd.to_timedelta(texts)
    orders = orders.rename(columns={"BizIndex": "sequence", "OrderNo": "order"})
    orders["kind"] = orders["OrdType"].map({"65": "A", "68": "D"})
    orders["is_buy"] = (orders["Side"] == "66").astype(int)
    orders["price"] = orders["Price"].astype(float) / 1000
    orders["size"] = orders["OrderQty"].astype(float) / 1000
    bought = {"BizIndex": "sequence", "BidApplSeqNum": "buyer", "OfferApplSeqNum": "seller"}
    trades = trades.rename(columns=bought)
    trades["kind"] = trades["ExecType"].map({"66": "B", "83": "S", "78": "N"})
    trades["price"] = trades["LastPx"].astype(float) / 1000
    trades["size"] = trades["LastQty"].astype(float) / 1000
    return follow_shanghai(orders, trades)


def convert_dolphindb_day(files: Sequence[Path]) -> pd.DataFrame:
    """Orders and trades of 1 February 2023: dolphindb/Tutorials_CN, dolphinscheduler."""
    with zipfile.ZipFile(files[0]) as archive:
        orders = pd.read_csv(archive.open("20230201/entrust.csv"))
        trades = pd.read_csv(archive.open("20230201/trade.csv"))
    names = {"OrderTime": "time", "OrderPrice": "price", "Balance": "size", "OrderNO": "order"}
    orders = orders.rename(columns=names | {"BizIndex": "sequence", "OrderType": "kind"})
    orders["is_buy"] = (orders["OrderBSFlag"] == "B").astype(int)
    names = {"TradTime": "time", "TradPrice": "price", "TradVolume": "size"}
    names |= {"TradeBuyNo": "buyer", "TradeSellNo": "seller", "TradeBSFlag": "kind"}
    trades = trades.rename(columns=names | {"BizIndex": "sequence"})
    for events in (orders, trades):
        events["time"] = pd.Timestamp("2023-02-01") + pd.to_timedelta(events["time"])
    return follow_shanghai(orders, trades)


def convert_dolphindb_engine(files: Sequence[Path], share: str) -> pd.DataFrame:
    """A share's orders and trades in two files: dolphindb/Tutorials_CN, orderBookSnapshotEngine."""
    orders, trades = (pd.read_csv(file) for file in files)
    names = {"OrderPrice": "price", "OrderQty": "size", "OrderNO": "order"}
    orders = orders[orders["SecurityID"] == share].rename(columns=names)
    orders["kind"] = orders["OrderType"].map({2: "A", 10: "D"})
    orders["is_buy"] = (orders["OrderBSFlag"] == 1).astype(int)
    names = {"TradePrice": "price", "TradeQty": "size"}
    names |= {"TradeBuyNo": "buyer", "TradeSellNo": "seller"}
    trades = trades[trades["SecurityID"] == share].rename(columns=names)
    trades["kind"] = trades["TradeBSFlag"].map({0: "N", 1: "B", 2: "S"})
    for events in (orders, trades):
        days = pd.to_datetime(events["MDDate"], format="%Y.%m.%d")
        events["time"] = days + pd.to_timedelta(events["MDTime"])
        events["sequence"] = events["ApplSeqNum"]
    return follow_shanghai(orders, trades)


def follow_shanghai(orders: pd.DataFrame, trades: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a Shanghai share's continuous trading, from all orders and trades.

    Both have `sequence` (the exchange's order of events), `time`, `kind`, `price` and `size`.
    kind: A adds an order and D deletes it (`order`, `is_buy`); B and S are trades that the buyer or
    the seller began (`buyer` and `seller` name their orders), N are trades of the opening auction.

    The exchange tells of an order that begins a trade only what is left of it, after the trade. So
    a trade changes the resting order alone, but for the auction's, where both orders rest. What
    rests after the auction becomes the snapshot, 1 ms before trading.
    """
    orders = orders.assign(buyer=orders["order"], seller=0)
    trades = trades.assign(is_buy=0)
    names = ["sequence", "time", "kind", "is_buy", "price", "size", "buyer", "seller"]
    events = pd.concat([orders[names], trades[names]])
    events["sequence"] = events["sequence"].astype(int)
    events[["buyer", "seller"]] = events[["buyer", "seller"]].astype(int)
    events = events.sort_values("sequence", kind="stable")
    clock = events["time"] - events["time"].dt.normalize()
    book: dict[int, list] = {}  # is_buy, price and size that is left, by order
    for event in events[clock < OPENING].itertuples(index=False):
        change_orders(book, event)
    opening = events["time"].iloc[0].normalize() + OPENING - pd.Timedelta(milliseconds=1)
    rows = [(opening, "SNAPSHOT", *rest, order) for order, rest in book.items()]
    for event in events[(clock >= OPENING) & (clock < CLOSING)].itertuples(index=False):
        rows += change_orders(book, event)
    return pd.DataFrame(rows, columns=ORDER_COLUMNS)


def change_orders(book: dict[int, list], event) -> list[tuple]:
    """Apply an order or a trade to `book`; return the rows that say so."""
    if event.kind == "A":
        book[event.buyer] = [event.is_buy, event.price, event.size]
        return [(event.time, "ADD", event.is_buy, event.price, event.size, event.buyer)]
    if event.kind == "D":
        return [(event.time, "DELETE", *book.pop(event.buyer), event.buyer)]
    rows = []
    rested = {"B": [event.seller], "S": [event.buyer], "N": [event.buyer, event.seller]}
    for order in rested[event.kind]:
        is_buy, _, left = book[order]
        book[order][2] = left - event.size
        if book[order][2] == 0:
            del book[order]
        rows.append((event.time, "MATCH", is_buy, event.price, event.size, order))
    return rows
