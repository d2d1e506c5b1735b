"""Lay recordings out by market, and parse them, for `benchmarks/bench_probes.py` and for training.

    python -m benchmarks.lay_recordings --recordings=recorded --data_dir=bench

benchmarks/markets.py says which files below `recordings` are which market. Two data folders are
made, `<data_dir>/depth_96` and `depth_40`: each has `raw/<PAIR>/` with links to the files, which
data_parser.py then parses. The markets to train on and to compare recipes on are in both, a market
to test on is in the one of its depth. A market without its files is left out, and said.
"""

config = {
    "recordings": "recorded",  # str: folder that holds binance/, coinapi/ and short/
    "data_dir": "bench",  # str: folder for depth_96/ and depth_40/
    "depths": [96, 40],  # list[int]: which of the two folders
    "roles": ["train", "validation", "test"],  # list[train | validation | test]: whose markets
    "markets": None,  # list[str] | None: pairs of benchmarks/markets.py; None: all of these roles
    "copy": False,  # bool: copy the files instead of linking them, to take the folder elsewhere
    "parse": True,  # bool: run data_parser.py on what was laid out
    "workers": 0,  # int >= 0: as data_parser.py's
}

from lob.config import InputError, counted, load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.markets import DEEP, MARKETS, SHALLOW, Market
from lob.results import ROOT


def main(config: dict) -> int:
    if {*config["depths"]} - {DEEP, SHALLOW} or not config["depths"]:
        raise InputError(f"depths = {config['depths']} must be of {DEEP} and {SHALLOW}")
    source = Path(config["recordings"])
    wanted = [market for market in MARKETS if market.role in config["roles"]]
    if config["markets"] is not None:
        if not config["markets"] or {*config["markets"]} - {market.pair for market in wanted}:
            raise InputError(
                f"markets = {config['markets']} must be pairs of benchmarks/markets.py under the "
                f"roles {', '.join(config['roles'])}"
            )
        wanted = [market for market in wanted if market.pair in config["markets"]]
    there = [market for market in wanted if not find_missing(source, market)]
    if not there:
        raise InputError(
            f"recordings = {config['recordings']!r} holds none of the markets whole; there is no "
            f"{find_missing(source, wanted[0])[0]}, for one: set --recordings"
        )
    for market in wanted:
        if missing := find_missing(source, market):
            print(f"{market.pair} is left out: there is no {missing[0]}")
    for depth in config["depths"]:
        mine = [market for market in there if depth in market.depths()]
        folder = Path(config["data_dir"]) / f"depth_{depth}"
        lay_out(source, folder, mine, config["copy"])
        print(f"{folder}/raw: {counted(len(mine), 'market')}", flush=True)
        if config["parse"] and mine:
            parse(folder, depth, mine, config["workers"])
    return 0


def find_missing(source: Path, market: Market) -> list[str]:
    return [file for file in market.files if not (source / file).is_file()]


def lay_out(source: Path, folder: Path, markets: Sequence[Market], copy: bool) -> None:
    """Link or copy the markets' files into `folder`/raw/<PAIR>/."""
    for market in markets:
        raw = folder / "raw" / market.pair
        raw.mkdir(parents=True, exist_ok=True)
        for name in market.files:
            file = raw / Path(name).name
            file.unlink(missing_ok=True)
            if copy:
                shutil.copyfile(source / name, file)
            else:
                file.symlink_to((source / name).resolve())


def parse(folder: Path, depth: int, markets: Sequence[Market], workers: int) -> None:
    """Run the parser on the markets. Raises InputError if it fails."""
    pairs = [market.pair for market in markets]
    words = [f"--data_dir={folder}", f"--depth={depth}", f"--pairs={pairs}", f"--workers={workers}"]
    status = subprocess.call([sys.executable, str(ROOT / "data_parser.py"), *words])
    if status:
        raise InputError(f"data_parser.py stopped with status {status}: its lines above say why")


if __name__ == "__main__":
    run(main, config)
