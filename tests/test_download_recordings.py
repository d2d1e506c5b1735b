"""training_data/download_recordings.py against a server on this machine, and its conversions.

The server has small files in the layouts of the public ones. What they become is written by hand.
"""

import gzip
import hashlib
import importlib.util
import io
import json
import sys
import tarfile
import threading
import types
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from conftest import ROOT, refusal, shell

from benchmarks import conversions, markets, originals
from lob.config import CheckFailed, InputError

SCRIPT = "training_data/download_recordings.py"
spec = importlib.util.spec_from_file_location("download_recordings", ROOT / SCRIPT)
download = importlib.util.module_from_spec(spec)
spec.loader.exec_module(download)

HEAD = "time_exchange;time_coinapi;update_type;is_buy;entry_px;entry_sx"
GDAX = {
    "bids.csv": "side,price,size\nbuy,8337,0.5\nbuy,0.01,152956.98092796\n",
    "asks.csv": "side,price,size\nsell,8337.67,35.7\n",
    "1.csv": "side,price,size,time\nbuy,8336.500,0.11244000000000001,2018-04-15T23:11:43.047Z\n",
    "2.csv": "side,price,size,time\nsell,8337.67,0.0,2018-04-15T23:11:44.100Z\n",
}
GDAX_ROWS = """\
2018-04-15T23:11:43.0460000;SNAPSHOT;1;8337;0.5
2018-04-15T23:11:43.0460000;SNAPSHOT;1;0.01;152956.98092796
2018-04-15T23:11:43.0460000;SNAPSHOT;0;8337.67;35.7
2018-04-15T23:11:43.0470000;SET;1;8336.5;0.11244
2018-04-15T23:11:44.1000000;SET;0;8337.67;0
"""
ORDER_BOOK = {"bids": [["10.00", "1.50", "x"]], "asks": [["10.02", "0.00000001", "y"]]}
STAMP = "2018-07-13T20:47:11.025000Z"
MESSAGES = [
    # `received` says nothing of the book, and so does the end of z, which never rested.
    {"type": "received", "order_id": "z", "side": "buy", "price": "10.02", "size": "1"},
    {"type": "match", "maker_order_id": "x", "taker_order_id": "z", "side": "buy"}
    | {"price": "10.00", "size": "0.5"},
    {"type": "done", "order_id": "z", "side": "sell", "remaining_size": "0.2", "price": "10"},
    {"type": "open", "order_id": "w", "side": "sell", "price": "10.03", "remaining_size": "2"},
    {"type": "match", "maker_order_id": "y", "side": "sell", "price": "10.02"}
    | {"size": "0.00000001"},
    {"type": "done", "order_id": "y", "side": "sell", "remaining_size": "0", "price": "10.02"},
    {"type": "done", "order_id": "w", "side": "sell", "remaining_size": "2", "price": "10.03"},
]
ORDER_ROWS = """\
2018-07-13T20:47:11.0249990;SNAPSHOT;1;10;1.5;1
2018-07-13T20:47:11.0249990;SNAPSHOT;0;10.02;0.00000001;2
2018-07-13T20:47:11.0250000;MATCH;1;10;0.5;1
2018-07-13T20:47:11.0250000;ADD;0;10.03;2;3
2018-07-13T20:47:11.0250000;MATCH;0;10.02;0.00000001;2
2018-07-13T20:47:11.0250000;DELETE;0;10.03;2;3
"""
# Two orders meet in the auction, one is deleted before it. Order 4 takes 100 of what order 1 has
# left, and its own remainder is told after that. The last row is of the closing auction.
SHANGHAI_ROWS = """\
2023-02-07T09:29:59.9990000;SNAPSHOT;0;1800.5;200;1
2023-02-07T09:30:00.0300000;MATCH;0;1800.5;100;1
2023-02-07T09:30:00.0300000;ADD;1;1800.4;50;4
2023-02-07T09:30:01.5000000;MATCH;1;1800.4;50;4
2023-02-07T14:56:59.9900000;DELETE;0;1800.5;100;1
"""
AX_LINES = """\
//MsgType=111 SecurityID=600519 DataTimeStamp=84521
//MsgType=192 OrderNo=1 Price=1800500 OrderQty=300000 OrdType=65 Side=83 TransactTime=9150000 BizIndex=11
//MsgType=192 OrderNo=2 Price=1801000 OrderQty=100000 OrdType=65 Side=66 TransactTime=9150002 BizIndex=12
//MsgType=192 OrderNo=3 Price=1700000 OrderQty=100000 OrdType=65 Side=66 TransactTime=9150002 BizIndex=13
//MsgType=192 OrderNo=3 Price=1700000 OrderQty=100000 OrdType=68 Side=66 TransactTime=9160000 BizIndex=14
//MsgType=192 OrderNo=4 Price=1800400 OrderQty=50000 OrdType=65 Side=66 TransactTime=9300003 BizIndex=21
//MsgType=192 OrderNo=1 Price=1800500 OrderQty=100000 OrdType=68 Side=83 TransactTime=14565999 BizIndex=23
//MsgType=192 OrderNo=6 Price=1800500 OrderQty=100000 OrdType=65 Side=83 TransactTime=14570000 BizIndex=24
//MsgType=191 BidApplSeqNum=2 OfferApplSeqNum=1 LastPx=1800500 LastQty=100000 ExecType=78 TransactTime=9250008 BizIndex=15
//MsgType=191 BidApplSeqNum=4 OfferApplSeqNum=1 LastPx=1800500 LastQty=100000 ExecType=66 TransactTime=9300003 BizIndex=20
//MsgType=191 BidApplSeqNum=4 OfferApplSeqNum=5 LastPx=1800400 LastQty=50000 ExecType=83 TransactTime=9300150 BizIndex=22
"""  # noqa: E501
DAY_ORDERS = """\
OrderTime,OrderType,OrderNO,OrderPrice,Balance,OrderBSFlag,BizIndex
09:15:00.000,A,1,1800.49999999999999,300,S,11
09:15:00.020,A,2,1801,100,B,12
09:15:00.020,A,3,1700,100,B,13
09:16:00.000,D,3,1700,100,B,14
09:30:00.030,A,4,1800.4,50,B,21
14:56:59.990,D,1,1800.5,100,S,23
14:57:00.000,A,6,1800.5,100,S,24
"""
DAY_TRADES = """\
TradTime,TradPrice,TradVolume,TradeBuyNo,TradeSellNo,TradeBSFlag,BizIndex
09:25:00.080,1800.5,100,2,1,N,15
09:30:00.030,1800.5,100,4,1,B,20
09:30:01.500,1800.4,50,4,5,S,22
"""
DAY = {"20230201/entrust.csv": DAY_ORDERS, "20230201/trade.csv": DAY_TRADES}
OBADIAH_TABLE = pd.DataFrame(
    {
        "timestamp": [1555102810.0, 1555102810.0, 1555102811.12345, 1555102811.12345],
        "price": [20000.0, 5042.97, 5043.0, 20000.0],
        "volume": [0.4, 0.01027596, 1e-8, 0.0],
        "side": pd.Categorical(["ask", "bid", "bid", "ask"]),
    }
)
OBADIAH_ROWS = """\
2019-04-12T21:00:10.0000000;SNAPSHOT;0;20000;0.4
2019-04-12T21:00:10.0000000;SNAPSHOT;1;5042.97;0.01027596
2019-04-12T21:00:11.1234500;SET;1;5043;0.00000001
2019-04-12T21:00:11.1234500;SET;0;20000;0
"""


def as_file(rows: str) -> bytes:
    """A file of CoinAPI's layout whose two times are equal."""
    lines = [line.partition(";") for line in rows.splitlines()]
    head = HEAD + ";order_id" * (lines[0][2].count(";") == 4)
    return "\n".join([head, *(f"{time};{time};{rest}" for time, _, rest in lines), ""]).encode()


def zipped(members: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def tarred(members: dict[str, object]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"orderbookmdp-0.1.2/tests/testdata/{name}.json")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def of_engine() -> dict[str, bytes]:
    """The same orders and trades in the layout of two files of several shares."""
    day = {"MDDate": "2023.02.07", "SecurityID": "A.SH"}
    orders = pd.read_csv(io.StringIO(DAY_ORDERS)).assign(**day)
    orders["OrderType"] = orders["OrderType"].map({"A": 2, "D": 10})
    orders["OrderBSFlag"] = orders["OrderBSFlag"].map({"B": 1, "S": 2})
    names = {"OrderTime": "MDTime", "Balance": "OrderQty", "BizIndex": "ApplSeqNum"}
    trades = pd.read_csv(io.StringIO(DAY_TRADES)).assign(**day)
    trades["TradeBSFlag"] = trades["TradeBSFlag"].map({"N": 0, "B": 1, "S": 2})
    others = {"TradTime": "MDTime", "TradPrice": "TradePrice", "TradVolume": "TradeQty"}
    files = {}
    for name, events in (("SHorders.zip", orders), ("SHtrans.zip", trades)):
        events = events.rename(columns=names | others)
        other_share = events.assign(SecurityID="B.SH")
        text = pd.concat([other_share, events]).to_csv(index=False)
        files[name] = zipped({name.replace("zip", "csv"): text})
    return files


MADE = [{**book, "time": STAMP} for book in MESSAGES]
SHANGHAI_0201 = SHANGHAI_ROWS.replace("02-07", "02-01")
CONVERTED = {
    "gdax": (
        {name: text.encode() for name, text in GDAX.items()},
        conversions.convert_gdax,
        GDAX_ROWS,
    ),
    "orderbookmdp": (
        {"sdist.tar.gz": tarred({"beginning_level_3": ORDER_BOOK, "messages": MADE})},
        conversions.convert_orderbookmdp,
        ORDER_ROWS,
    ),
    "axorderbook": (
        {"AX.zip": zipped({"AX.log": AX_LINES})},
        conversions.convert_axorderbook,
        SHANGHAI_ROWS,
    ),
    "dolphindb day": ({"day.zip": zipped(DAY)}, conversions.convert_dolphindb_day, SHANGHAI_0201),
    "dolphindb engine": (
        of_engine(),
        partial(conversions.convert_dolphindb_engine, share="A.SH"),
        SHANGHAI_ROWS,
    ),
}
PLAIN = b"whole" * 99


class Server(BaseHTTPRequestHandler):
    """Serves FILES, `cut` sends half of them, `changed` another byte; keeps what was asked for."""

    fault = ""
    asked: list[str]
    files: dict[str, bytes]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = self.files.get(self.path.removeprefix("/"))
        self.send_response(404 if body is None else 200)
        body = body or b"404: Not Found"
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = body[: len(body) // 2]
        self.wfile.write({"cut": half, "changed": b"?" + body[1:]}.get(self.fault, body))

    def log_message(self, *_) -> None:
        pass


def make_recording(files: dict[str, bytes], made: bytes, convert=None) -> originals.Recording:
    public = [
        originals.Original("http://127.0.0.1:1", f"c0ffee/{name}", sha(data), len(data))
        for name, data in files.items()
    ]
    return originals.Recording(tuple(public), sha(made), convert)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_market(pair: str, *files: str) -> markets.Market:
    return markets.Market(pair, files, "train", 48, f"words of {pair}", f"who/{pair}, MIT")


@pytest.fixture
def server(monkeypatch):
    """Two markets: a file as it is, and two that are converted; a third one is not public."""
    files = {"a.gz": PLAIN}
    table = {"binance/a.gz": make_recording(files, PLAIN)}
    for name in ("gdax", "axorderbook"):
        parts, convert, rows = CONVERTED[name]
        files |= parts
        table[f"coinapi/{name}.csv.gz"] = make_recording(parts, as_file(rows), convert)
    listed = [
        make_market("PLAIN", "binance/a.gz"),
        make_market("MADE", "coinapi/gdax.csv.gz", "coinapi/axorderbook.csv.gz"),
        make_market("PRIVATE", "coinapi/other.csv.gz"),
    ]
    monkeypatch.setattr(download, "RECORDINGS", table)
    monkeypatch.setattr(download, "MARKETS", listed)
    monkeypatch.setattr(Server, "fault", "")
    monkeypatch.setattr(Server, "asked", [], raising=False)
    served = {f"c0ffee/{name}": data for name, data in files.items()}
    monkeypatch.setattr(Server, "files", served, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(folder, endpoint, markets=None) -> None:
    download.main({"recordings": str(folder), "markets": markets, "endpoint": endpoint})


def there(folder) -> set[str]:
    """All files below the folder, partial ones too."""
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_files_are_fetched_and_converted_once_and_damaged_ones_again(tmp_path, server, capsys):
    fetch(tmp_path, f"{server}/")
    assert (tmp_path / "binance" / "a.gz").read_bytes() == PLAIN
    made = tmp_path / "coinapi" / "gdax.csv.gz"
    packed = made.read_bytes()
    assert gzip.decompress(packed) == as_file(GDAX_ROWS)
    assert len(Server.asked) == 6
    said = capsys.readouterr().out
    assert "PLAIN: words of PLAIN; from who/PLAIN, licence MIT" in said
    assert "to fetch: 6 public files, 0.0 MB" in said and "1 other market" in said
    fetch(tmp_path, "http://127.0.0.1:1")
    assert capsys.readouterr().out.count("is already there") == 3
    # A damaged conversion is made of the public files that were kept.
    for data in (b"damaged", packed[:-9], gzip.compress(b"other")):
        made.write_bytes(data)
        fetch(tmp_path, "http://127.0.0.1:1")
        assert "gdax.csv.gz has another SHA-256: it is made again" in capsys.readouterr().out
        assert made.read_bytes() == packed
    (tmp_path / "binance" / "a.gz").write_bytes(b"damaged")
    (tmp_path / "originals" / "c0ffee" / "bids.csv").write_bytes(b"damaged")
    made.unlink()
    fetch(tmp_path, server)
    assert (tmp_path / "binance" / "a.gz").read_bytes() == PLAIN and made.read_bytes() == packed
    assert len(Server.asked) == 8


def test_markets_are_picked_and_others_refused(tmp_path, server):
    fetch(tmp_path, server, ["PLAIN"])
    assert there(tmp_path) == {"binance/a.gz"}
    with pytest.raises(InputError, match=r"\['PRIVATE', 'X'\] cannot be fetched; .*: PLAIN, MADE"):
        fetch(tmp_path, server, ["PLAIN", "PRIVATE", "X"])


@pytest.mark.parametrize(
    "fault, said", [("cut", "does not answer"), ("changed", "and is not kept")]
)
def test_what_comes_damaged_is_not_kept(tmp_path, server, monkeypatch, fault, said) -> None:
    monkeypatch.setattr(Server, "fault", fault)
    for pair in ("PLAIN", "MADE"):
        with pytest.raises(InputError, match=said):
            fetch(tmp_path, server, [pair])
    assert there(tmp_path) == set()
    (tmp_path / "binance").mkdir(exist_ok=True)
    (tmp_path / "binance" / "a.gz").write_bytes(b"what was there")
    with pytest.raises(InputError, match=said):
        fetch(tmp_path, server)
    assert (tmp_path / "binance" / "a.gz").read_bytes() == b"what was there"


def test_a_conversion_that_gives_other_rows_is_not_written(tmp_path, server, monkeypatch):
    parts, convert, rows = CONVERTED["gdax"]
    other = make_recording(parts, as_file(rows) + b"more", convert)
    monkeypatch.setitem(download.RECORDINGS, "coinapi/gdax.csv.gz", other)
    with pytest.raises(CheckFailed, match="gives other rows"):
        fetch(tmp_path, server, ["MADE"])
    assert not (tmp_path / "coinapi").exists()


def test_a_server_that_does_not_serve_is_one_line(tmp_path, server) -> None:
    one = "--markets=['BTCUSDT_SPOT']"
    for endpoint in (
        "http://127.0.0.1:1",
        "http://no-such-host.invalid",
        "nonsense",
        "http://[",
        "",
    ):
        said = refusal(SCRIPT, f"--recordings={tmp_path}", one, f"--endpoint={endpoint}")
        assert f"endpoint = {endpoint!r} does not answer" in said
    said = refusal(
        SCRIPT, f"--recordings={tmp_path}", one, f"--endpoint={server}"
    )  # the real table
    assert f"{server}/nkaz001/hftbacktest/" in said and "is not served (404 Not Found)" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", CONVERTED)
def test_each_layout_becomes_the_rows_of_coinapi(tmp_path, name) -> None:
    files, convert, rows = CONVERTED[name]
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    text = conversions.write_coinapi(convert([tmp_path / file for file in files]))
    assert text == as_file(rows)


def test_tables_of_r_become_the_rows_of_coinapi(tmp_path, monkeypatch) -> None:
    reader = types.SimpleNamespace(read_rda=lambda file: {"of": OBADIAH_TABLE, "other": None})
    monkeypatch.setitem(sys.modules, "rdata", reader)
    rows = conversions.convert_obadiah([tmp_path / "testdata.rda"], "of")
    assert conversions.write_coinapi(rows) == as_file(OBADIAH_ROWS)


def test_tables_are_read_from_a_file_of_r(tmp_path) -> None:
    rdata = pytest.importorskip("rdata")
    rdata.write_rda(tmp_path / "testdata.rda", {"of": OBADIAH_TABLE})
    rows = conversions.convert_obadiah([tmp_path / "testdata.rda"], "of")
    assert conversions.write_coinapi(rows) == as_file(OBADIAH_ROWS)


def test_without_the_package_for_r_its_markets_are_left_out(tmp_path, server, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rdata", None)
    monkeypatch.setattr(download, "OBADIAH", download.RECORDINGS["binance/a.gz"].originals[0])
    with pytest.raises(InputError, match="PLAIN needs the package rdata: pip install -c constr"):
        fetch(tmp_path, server, ["MADE", "PLAIN"])
    assert Server.asked == []
    fetch(tmp_path, server)
    said = capsys.readouterr().out
    assert "left out: PLAIN needs the package rdata" in said and "to fetch: 5 public" in said
    assert not (tmp_path / "binance").exists() and (tmp_path / "coinapi").exists()


def test_the_table_has_files_of_the_markets_alone() -> None:
    named = {file for market in markets.MARKETS for file in market.files}
    assert originals.RECORDINGS.keys() <= named
    shown = ("BTCUSDT_USDM_202408", "BTCUSD_COINBASE_20180424", "ETHUSD_BITFINEX", "SSE_601825")
    assert {market.pair for market in download.find_public()} >= {*shown}


def test_the_recordings_have_the_checksums_of_the_table(recorded) -> None:
    """So nothing is fetched: what the results were made with is what the script makes."""
    done = shell(SCRIPT, f"--recordings={recorded}", "--endpoint=http://127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is already there") == len(originals.RECORDINGS) == 21
    assert "to fetch: 0 public files" in done.stdout


def test_a_recorded_day_of_shanghai_is_converted_row_for_row(recorded) -> None:
    recording = originals.RECORDINGS["coinapi/SSE_600519/20230207.csv.gz"]
    public = recorded / "sse" / "AX_sbe_sse_600519.zip"
    assert sha(public.read_bytes()) == recording.originals[0].sha256
    text = conversions.write_coinapi(recording.convert([public]))
    assert text == gzip.decompress((recorded / "coinapi/SSE_600519/20230207.csv.gz").read_bytes())
