"""Fetch the public recordings that the results rest on, at pinned versions.

    python training_data/download_recordings.py --recordings=recorded
    python training_data/download_recordings.py --markets="['BTCUSDT_SPOT', 'SSE_600961']"

Fetches each file from its authors' repository or from PyPI, checks its SHA-256 and lays it where
`python -m benchmarks.lay_recordings --recordings=recorded` looks for it. Recordings of another
layout are converted to CoinAPI's; the SHA-256 of their rows is checked too. Their public files stay
in `originals/`. What is there already is neither fetched nor converted again. Two markets, those of
petr-fedorov/obadiah, need the package rdata.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

config = {
    "recordings": "recorded",  # str: folder that gets binance/, coinapi/ and originals/
    "markets": None,  # list[str] | None: pairs of benchmarks/markets.py; None: all that are public
    "endpoint": None,  # str | None: address of a mirror of all files; None: their own servers
}

from lob.config import CheckFailed, InputError, counted, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import gzip
import hashlib
import http.client
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from importlib.util import find_spec

from benchmarks.conversions import write_coinapi
from benchmarks.markets import MARKETS, Market
from benchmarks.originals import OBADIAH, RECORDINGS, Original, Recording
from lob.storage import new_file

TIMEOUT_SECONDS = 60


def main(config: dict) -> None:
    folder, endpoint = Path(config["recordings"]), config["endpoint"]
    markets = choose(config["markets"])
    files = [file for market in markets for file in market.files]
    wanted = {file for file in files if not is_laid(folder / file, RECORDINGS[file])}
    if find_spec("rdata") is None:
        markets = without_r(markets, wanted, config["markets"] is None)
    originals = {
        original
        for market in markets
        for file in wanted.intersection(market.files)
        for original in RECORDINGS[file].originals
    }
    size = sum(original.size for original in originals) / 1e6
    print(f"to fetch: {counted(len(originals), 'public file')}, {size:,.1f} MB", flush=True)
    for market in markets:
        repository, licence = market.source.rsplit(", ", 1)
        print(f"{market.pair}: {market.words}; from {repository}, licence {licence}", flush=True)
        for file in market.files:
            if file in wanted:
                lay(folder, file, endpoint)
            else:
                print(f"{folder / file} is already there")
    if others := len(MARKETS) - len(find_public()):
        print(f"{counted(others, 'other market')} of benchmarks/markets.py cannot be fetched")
    print(f"next: python -m benchmarks.lay_recordings --recordings={folder}")


def find_public() -> list[Market]:
    """Return the markets whose files are all made of public ones."""
    return [market for market in MARKETS if RECORDINGS.keys() >= {*market.files}]


def choose(pairs: Sequence[str] | None) -> list[Market]:
    """Return the markets of these pairs, or all. Raises InputError if one cannot be fetched."""
    public = {market.pair: market for market in find_public()}
    unknown = [pair for pair in pairs or () if pair not in public]
    if unknown:
        raise InputError(
            f"markets = {unknown} cannot be fetched; name some of these: {', '.join(public)}"
        )
    return list(public.values()) if pairs is None else [public[pair] for pair in pairs]


def without_r(markets: list[Market], wanted: set[str], all_of_them: bool) -> list[Market]:
    """Return the markets without those that a missing package has to read.

    Raises InputError if such a market was named.
    """
    need = [
        market
        for market in markets
        if any(OBADIAH in RECORDINGS[file].originals for file in wanted.intersection(market.files))
    ]
    if need:
        pairs = ", ".join(market.pair for market in need)
        said = f"{pairs} needs the package rdata: pip install -c constraints.txt rdata"
        if not all_of_them:
            raise InputError(f"{said}, or leave it out of --markets")
        print(f"left out: {said}")
    return [market for market in markets if market not in need]


def is_laid(file: Path, recording: Recording) -> bool:
    """Say whether the file is there with the content that the results were made with."""
    if not file.is_file():
        return False
    data = file.read_bytes()
    if recording.convert is not None:
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return False
    return hashlib.sha256(data).hexdigest() == recording.sha256


def lay(folder: Path, name: str, endpoint: str | None) -> None:
    """Fetch the originals of a recording, and write it below `folder`.

    Raises InputError if a file is not served as it must be, and CheckFailed if its conversion gives
    other rows.
    """
    file, recording = folder / name, RECORDINGS[name]
    if file.exists():
        print(f"{file} has another SHA-256: it is made again")
    if recording.convert is None:
        data = fetch(recording.originals[0], endpoint)
    else:
        originals = [keep(folder, original, endpoint) for original in recording.originals]
        text = write_coinapi(recording.convert(originals))
        if hashlib.sha256(text).hexdigest() != recording.sha256:
            raise CheckFailed(f"{file}: the conversion gives other rows than before; not written")
        data = gzip.compress(text, mtime=0)
    with new_file(file) as handle:
        handle.write(data)
    made = "fetched" if recording.convert is None else "converted"
    print(f"{file}: {made}, {len(data) / 1e6:,.1f} MB", flush=True)


def keep(folder: Path, original: Original, endpoint: str | None) -> Path:
    """Fetch a public file into `folder`/originals, unless it is there; return its path."""
    file = folder / "originals" / original.path
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != original.sha256:
        data = fetch(original, endpoint)
        with new_file(file) as handle:
            handle.write(data)
    return file


def fetch(original: Original, endpoint: str | None) -> bytes:
    """Return a public file. Raises InputError if it does not come as it must be."""
    host = original.host if endpoint is None else endpoint.rstrip("/")
    named = host if endpoint is None else f"endpoint = {endpoint!r}"
    url = f"{host}/{original.path}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            data = answer.read()
    except urllib.error.HTTPError as error:
        raise InputError(
            f"{url} is not served ({error.code} {error.reason}): try again later, or name a mirror "
            "with --endpoint"
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(
            f"{named} does not answer ({error}): check the network and try again, or name a mirror "
            "with --endpoint"
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != original.sha256:
        raise InputError(
            f"{url} came with the SHA-256 {found[:12]} instead of {original.sha256[:12]} and is "
            "not kept: try again, or name a mirror with --endpoint"
        )
    return data


if __name__ == "__main__":
    run(main, config)
