"""training_data/download_tardis.py against a server on this machine, laid out as tardis.dev."""

import gzip
import importlib.util
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT
from test_feeds import tell_states, tell_story, write_tardis

import data_parser
from lob.book.states import open_book

PATH = "/v1/binance-futures/incremental_book_L2/2024/08/01/BTCUSDT.csv.gz"


class Server(BaseHTTPRequestHandler):
    """The free day; another day, like any without a key, is refused as tardis.dev refuses it."""

    data = gzip.compress(write_tardis(tell_story()))

    def do_GET(self) -> None:
        found = self.path == PATH
        body = self.data if found else b'{"code":123,"message":"Unauthorized request"}'
        self.send_response(200 if found else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def endpoint():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def download(*words: str, blocked: str = "") -> subprocess.CompletedProcess:
    start = f"import sys, runpy; sys.modules.update(dict.fromkeys({blocked.split()!r}))"
    code = (
        f"{start}; sys.argv[0] = 'training_data/download_tardis.py'; runpy.run_path(sys.argv[0], "
        "run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_day_is_fetched_and_parsed(tmp_path, endpoint) -> None:
    pytest.importorskip("tardis_dev")
    done = download(f"--data_dir={tmp_path}", f"--endpoint={endpoint}", "--symbol=btcusdt")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "raw" / "BTCUSDT" / "2024-08-01.csv.gz"
    assert done.stdout.startswith(
        f"fetching binance-futures btcusdt of 2024-08-01 from {endpoint}\n"
    )
    assert file.read_bytes() == Server.data
    assert "already there" in download(f"--data_dir={tmp_path}", "--symbol=btcusdt").stdout
    data_parser.parse_pair({**data_parser.config, "data_dir": str(tmp_path), "depth": 4}, "BTCUSDT")
    assert open_book(tmp_path / "book_states" / "BTCUSDT").rows == len(tell_states(tell_story()))


def test_refusals_are_one_line(tmp_path, endpoint) -> None:
    words = (f"--data_dir={tmp_path}", f"--endpoint={endpoint}")
    refused = [
        (download(*words, "--date=1/8/2024"), "is no day"),
        (download(*words, blocked="tardis_dev"), "pip install -c constraints.txt tardis-dev"),
    ]
    if importlib.util.find_spec("tardis_dev"):
        refused.append((download(*words, "--date=2024-08-02"), "TARDIS_API_KEY"))
        refused += [
            (download(words[0], f"--endpoint={nowhere}"), f"endpoint = {nowhere!r} does not answer")
            for nowhere in ("http://127.0.0.1:1/v1", "http://no-such-host.invalid/v1", "nonsense")
        ]
    for done, said in refused:
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.gz"))
