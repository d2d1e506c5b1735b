"""Make the sample that ships: 30 minutes of Bitstamp BTC/USD, order by order.

    python training_data/make_sample.py

Downloads the wheel of ob-analytics 0.1.0 with pip, takes the recording in it and writes
`training_data/raw/BTC_USD/20260502.csv.gz`, in the layout of CoinAPI's `limitbook_full`. The file
has the same bytes every time. Prints row counts and SHA-256.

The orders of the opening book (6,512) become SNAPSHOT rows. The actions created, changed and
deleted become ADD, SET (to the size that is left) and DELETE. At the end of its capture the
recorder made up deletes; these rows are left out.
"""

import gzip
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lob.config import run

PACKAGE = "ob-analytics==0.1.0"
MEMBER = "ob_analytics/_sample_data/orders.csv.gz"
OPENING_ORDERS, EVENTS = 6_512, 301_027
TARGET = Path(__file__).parent / "raw" / "BTC_USD" / "20260502.csv.gz"


def convert(orders: pd.DataFrame) -> pd.DataFrame:
    """Turn rows of ob-analytics into rows of CoinAPI.

    orders has id, timestamp, exchange_timestamp, price, volume, action and direction.
    """
    orders = orders.iloc[: OPENING_ORDERS + EVENTS]
    update_type = orders["action"].map({"created": "ADD", "changed": "SET", "deleted": "DELETE"})
    update_type[:OPENING_ORDERS] = "SNAPSHOT"
    return pd.DataFrame(
        {
            "time_exchange": format_times(orders["exchange_timestamp"]),
            "time_coinapi": format_times(orders["timestamp"]),
            "update_type": update_type,
            "is_buy": (orders["direction"] == "bid").astype(int),
            "entry_px": orders["price"].map(format_number),
            "entry_sx": orders["volume"].map(format_number),
            "order_id": orders["id"],
        }
    )


def format_times(milliseconds: pd.Series) -> pd.Series:
    return pd.to_datetime(milliseconds, unit="ms").dt.strftime("%Y-%m-%dT%H:%M:%S.%f0")


def format_number(value: float) -> str:
    return f"{value:.8f}".rstrip("0").rstrip(".")


def main(_: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--no-deps", "--dest", folder]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, PACKAGE], check=True)
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive, gzip.open(archive.open(MEMBER)) as handle:
            rows = convert(pd.read_csv(handle))
    text = rows.to_csv(sep=";", index=False, lineterminator="\n").encode()
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(gzip.compress(text, compresslevel=9, mtime=0))
    digest = hashlib.sha256(TARGET.read_bytes()).hexdigest()
    print(rows["update_type"].value_counts().to_string())
    print(f"{len(rows):,} rows, {TARGET.stat().st_size:,} bytes, SHA-256 {digest}\n{TARGET}")


if __name__ == "__main__":
    run(main, {})
