"""training_data/download_recordings.py against a server on this machine, laid out as GitHub."""

import hashlib
import importlib.util
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT, refusal, shell

from benchmarks import markets
from lob.config import InputError

SCRIPT = "training_data/download_recordings.py"
spec = importlib.util.spec_from_file_location("download_recordings", ROOT / SCRIPT)
download = importlib.util.module_from_spec(spec)
spec.loader.exec_module(download)

FILES = {"a.gz": b"whole" * 99, "deep/b.gz": b"other" * 99}


class Server(BaseHTTPRequestHandler):
    """Serves FILES, `cut` sends half of them, `changed` another byte; counts what was asked for."""

    fault = ""
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = FILES.get(self.path.removeprefix("/nkaz001/hftbacktest/c0ffee/examples/"))
        self.send_response(404 if body is None else 200)
        body = body or b"404: Not Found"
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = body[: len(body) // 2]
        self.wfile.write({"cut": half, "changed": b"?" + body[1:]}.get(self.fault, body))

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    monkeypatch.setattr(download, "SHA256", {"c0ffee": sums})
    monkeypatch.setattr(Server, "fault", "")
    monkeypatch.setattr(Server, "asked", [], raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch_all(folder, endpoint) -> None:
    download.main({"recordings": str(folder), "endpoint": endpoint})


def there(folder) -> dict[str, bytes]:
    """All files below the folder, partial ones too."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder / "binance")): file.read_bytes() for file in files}


def test_files_are_fetched_once_and_damaged_ones_again(tmp_path, server, capsys) -> None:
    fetch_all(tmp_path, f"{server}/")
    assert there(tmp_path) == FILES and len(Server.asked) == 2
    assert "nkaz001/hftbacktest at c0ffee, licence MIT: 2 files" in capsys.readouterr().out
    fetch_all(tmp_path, "http://127.0.0.1:1")
    assert capsys.readouterr().out.count("is already there") == 2
    (tmp_path / "binance" / "a.gz").write_bytes(b"damaged")
    fetch_all(tmp_path, server)
    assert "a.gz has another SHA-256: it is fetched again" in capsys.readouterr().out
    assert there(tmp_path) == FILES and len(Server.asked) == 3


@pytest.mark.parametrize(
    "fault, said", [("cut", "does not answer"), ("changed", "and is not kept")]
)
def test_what_comes_damaged_is_not_kept(tmp_path, server, monkeypatch, fault, said) -> None:
    monkeypatch.setattr(Server, "fault", fault)
    with pytest.raises(InputError, match=said):
        fetch_all(tmp_path, server)
    assert there(tmp_path) == {}
    (tmp_path / "binance").mkdir(exist_ok=True)
    (tmp_path / "binance" / "a.gz").write_bytes(b"what was there")
    with pytest.raises(InputError, match=said):
        fetch_all(tmp_path, server)
    assert there(tmp_path) == {"a.gz": b"what was there"}


def test_a_server_that_does_not_serve_is_one_line(tmp_path, server) -> None:
    for endpoint in (
        "http://127.0.0.1:1",
        "http://no-such-host.invalid",
        "nonsense",
        "http://[",
        "",
    ):
        said = refusal(SCRIPT, f"--recordings={tmp_path}", f"--endpoint={endpoint}")
        assert f"endpoint = {endpoint!r} does not answer" in said
    said = refusal(SCRIPT, f"--recordings={tmp_path}", f"--endpoint={server}")  # the real table
    assert f"{server}/nkaz001/hftbacktest/" in said and "is not served (404 Not Found)" in said
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_each_file_of_the_markets_of_binance_once() -> None:
    names = [f"{download.LAID}/{name}" for files in download.SHA256.values() for name in files]
    wanted = [name for market in markets.BINANCE for name in market.files]
    assert sorted(names) == sorted(wanted)
    assert {market.source for market in markets.BINANCE} == {markets.HFTBACKTEST}


def test_the_recordings_have_the_checksums_of_the_table(recorded) -> None:
    """So nothing is fetched, and the markets that are said to be whole are laid out."""
    done = shell(SCRIPT, f"--recordings={recorded}", "--endpoint=http://127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is already there") == 11
    whole = [market.pair for market in markets.BINANCE]
    assert f"whole: {', '.join(whole)}; " in done.stdout
