"""Fetch the public recordings that the results rest on, at pinned versions.

    python training_data/download_recordings.py --recordings=recorded

Fetches recordings of Binance from their authors' repository, 20 MB, checks each file's SHA-256 and
lays it where `python -m benchmarks.lay_recordings --recordings=recorded` looks for it. What is
there already is not fetched again. The other markets of benchmarks/markets.py were converted, so no
public file is the same: docs/running.md lists them.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

config = {
    "recordings": "recorded",  # str: folder that gets binance/
    "endpoint": "https://raw.githubusercontent.com",  # str: address of GitHub's files, or a mirror
}

from lob.config import InputError, counted, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import hashlib
import http.client
import urllib.error
import urllib.request

from benchmarks.markets import HFTBACKTEST, MARKETS
from lob.storage import new_file

TIMEOUT_SECONDS = 60

REPOSITORY, LICENCE = HFTBACKTEST.split(", ")
FOLDER, LAID = "examples", "binance"  # where the files lie there, and below `recordings`
# SHA-256 of each file by commit: later commits dropped the older files. The commits' git hashes of
# the files are those of the recordings that the results were made with.
SHA256 = {
    "b73eae70c674050dca294e1a1f53e4e2d0221ff0": {
        "usdm/btcusdt_20230404.dat.gz": (
            "85c1c350353bc5d73c8d48daf1519d1a7ce8d0bbe703be0b45278171876e110d"
        ),
        "usdm/btcusdt_20230405.dat.gz": (
            "f08860355a5924f7220dc26836485ea0f36dc3dabb22948d0d36af00e08e89c0"
        ),
    },
    "73bfa1728c130d24b491c4680055769f6fa3742b": {
        "usdm/btcusdt_20240718.gz": (
            "e4163718b819a93b858d1259bfeb53e170ee31e03738f88e172af74078cd45be"
        ),
        "usdm/btcusdt_20240719.gz": (
            "33bab357ff6e97be8134efd35d3489794807bedeb47f1a1f6cc81ece65d88b58"
        ),
        "usdm/ethusdt_20240718.gz": (
            "f2260198a4e9e8015fa9c0867746baec1675670a0c82cb9332beb4bf87696d4c"
        ),
        "usdm/ethusdt_20240719.gz": (
            "1412e7aa1091fc74d928b7cda4abf1bc0742cea7d8f770e2c63565b926e8817e"
        ),
    },
    "5f3ec40b2afb764e0fea112f941ed85523ef4e88": {
        "usdm/btcusdt_20240808.gz": (
            "0ad7b3a0f5cff220761ea890cfd6e3c15f6899edc7f94637ec915043d7a72251"
        ),
        "cm/btcusd_perp_20240808.gz": (
            "795efa5540bfca87d20181df5c444741a8cc31810689c429a4004cbbd0b3a374"
        ),
        "cm/btcusd_perp_20240809.gz": (
            "49ae1c7797b924e7f1dca4c5a64f5cebafaf08473041227b4b142b447c56c766"
        ),
        "spot/btcusdt_20240808.gz": (
            "5d263f4c5379cfc27379ef0e22779aa33804463d1b69c292e9c0714e31f2e1b4"
        ),
        "spot/btcusdt_20240809.gz": (
            "2981a27474b8903133cc66e25f4da561140dd061c942b84801b9d8c60e4b3599"
        ),
    },
}


def main(config: dict) -> None:
    folder, endpoint = Path(config["recordings"]), config["endpoint"].rstrip("/")
    laid = set()
    for commit, files in SHA256.items():
        about = f"{REPOSITORY} at {commit[:7]}, licence {LICENCE}"
        print(f"{about}: {counted(len(files), 'file')}", flush=True)
        for name, sha256 in files.items():
            file = folder / LAID / name
            laid.add(f"{LAID}/{name}")
            if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256:
                print(f"{file} is already there")
                continue
            if file.exists():
                print(f"{file} has another SHA-256: it is fetched again")
            data = fetch(endpoint, f"{REPOSITORY}/{commit}/{FOLDER}/{name}", sha256)
            with new_file(file) as handle:
                handle.write(data)
            print(f"{file}: {len(data) / 1e6:,.1f} MB", flush=True)
    whole = [market.pair for market in MARKETS if laid.issuperset(market.files)]
    others = counted(len(MARKETS) - len(whole), "other market")
    print(f"whole: {', '.join(whole)}; {others} were converted: docs/running.md says from what")
    print(f"next: python -m benchmarks.lay_recordings --recordings={folder}")


def fetch(endpoint: str, path: str, sha256: str) -> bytes:
    """Return a file of the server. Raises InputError if it does not send it as it must be."""
    url = f"{endpoint}/{path}"
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
            f"endpoint = {endpoint!r} does not answer ({error}): check the network and try again"
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise InputError(
            f"{url} came with the SHA-256 {found[:12]} instead of {sha256[:12]} and is not kept: "
            "try again, or name a mirror with --endpoint"
        )
    return data


if __name__ == "__main__":
    run(main, config)
