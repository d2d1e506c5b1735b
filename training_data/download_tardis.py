"""Fetch a day of order book updates from tardis.dev; the first day of each month is free.

    python training_data/download_tardis.py --symbol=BTCUSDT --date=2024-08-01

Writes `training_data/raw/<SYMBOL>/<date>.csv.gz` (`incremental_book_L2`), which data_parser.py
reads; later days go beside it. It needs the package tardis-dev, and for other days than the first
of a month a key in the environment variable TARDIS_API_KEY.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

config = {
    "exchange": "binance-futures",  # str: as tardis.dev names it
    "symbol": "BTCUSDT",  # str: as the exchange writes it
    "date": "2024-08-01",  # str: a UTC day, YYYY-MM-DD
    "data_dir": "training_data",  # str: the file goes into raw/<SYMBOL>/ below this folder
    "endpoint": "https://datasets.tardis.dev/v1",  # str: address of the server
}

from lob.config import InputError, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import os
import re
import urllib.error
import urllib.request
from datetime import date, timedelta

TIMEOUT_SECONDS = 60


def main(config: dict) -> None:
    try:
        day = date.fromisoformat(config["date"])
    except ValueError:
        raise InputError(f"date = {config['date']!r} is no day: write it as 2024-08-01") from None
    try:
        from tardis_dev import download_datasets
    except ImportError:
        raise InputError(
            "downloading needs the package tardis-dev: pip install -c constraints.txt tardis-dev"
        ) from None
    folder = Path(config["data_dir"]) / "raw" / re.sub(r"[^\w.-]", "-", config["symbol"].upper())
    file = folder / f"{day}.csv.gz"
    if file.exists():
        print(f"{file} is already there")
        return
    exchange, symbol, endpoint = config["exchange"], config["symbol"], config["endpoint"]
    print(f"fetching {exchange} {symbol} of {day} from {endpoint}", flush=True)
    check_reachable(endpoint)
    try:
        download_datasets(
            exchange,
            ["incremental_book_L2"],
            [symbol],
            str(day),
            str(day + timedelta(days=1)),
            api_key=os.environ.get("TARDIS_API_KEY", ""),
            download_dir=str(folder),
            endpoint=endpoint,
            get_filename=lambda *_: file.name,
            timeout=TIMEOUT_SECONDS,
        )
    except urllib.error.HTTPError as error:
        reason = str(error.msg).strip()[:200]
        raise InputError(
            f"tardis.dev has no {exchange} {symbol} of {day} for you ({error.code}: {reason}): "
            "without a key in TARDIS_API_KEY only the first day of a month is served"
        ) from None
    megabytes = file.stat().st_size / 1e6
    print(
        f"{file}: {megabytes:,.1f} MB; next: python data_parser.py --data_dir={config['data_dir']} "
        f"--pairs=\"['{folder.name}']\""
    )


def check_reachable(endpoint: str) -> None:
    """Raise InputError if the server does not answer: tardis-dev would try again for an hour."""
    try:
        urllib.request.urlopen(endpoint, timeout=TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # also an answer
    except (OSError, ValueError) as error:
        raise InputError(
            f"endpoint = {endpoint!r} does not answer ({error}): check the network and try again"
        ) from None


if __name__ == "__main__":
    run(main, config)
