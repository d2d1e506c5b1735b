"""The table of markets, its layout on disk, and the bench of probes on small books."""

import json
import re
from itertools import chain

import numpy as np
import pytest
import torch
from conftest import ROOT, metadata, write_book

from benchmarks import bench_probes, lay_recordings, markets, probe_tables
from lob.config import InputError, read_comments
from lob.evaluation import probe_fits, probes
from lob.model.checkpoint import save_checkpoint
from lob.model.encoder import BookEncoder, encoder_config
from lob.results import make_row

VALIDATION, TRAINING = "SSE_600519_20230201", "BTCUSD_BITSTAMP_2015_D20"


def days_of(role):
    files = chain.from_iterable(x.files for x in markets.MARKETS if x.role == role)
    return {re.search(r"20[12]\d{5}", file)[0] for file in files}


def test_no_day_is_in_two_roles():
    roles = [days_of(role) for role in markets.ROLES]
    assert all(roles) and sum(map(len, roles)) == len(set.union(*roles))


def test_each_file_is_one_markets_and_each_pair_has_one_role():
    files = list(chain.from_iterable(market.files for market in markets.MARKETS))
    assert len(files) == len({*files})
    pairs = [market.pair for market in markets.MARKETS]
    assert len(pairs) == len({*pairs})
    assert sum(market.group == markets.SHORT for market in markets.MARKETS) == 44
    for market in markets.MARKETS:
        assert market.role in markets.ROLES and 2 * market.levels >= market.depth
        assert market.depth in market.depths()


def test_every_file_of_the_table_is_recorded(recorded):
    for market in markets.MARKETS:
        assert not lay_recordings.find_missing(recorded, market), market.pair


def lay(tmp_path, **keys):
    defaults = {"recordings": str(tmp_path / "recorded"), "data_dir": str(tmp_path / "bench")}
    lay_recordings.main(lay_recordings.config | defaults | keys)


@pytest.mark.parametrize("copy", [False, True])
def test_recordings_are_laid_out_by_market_and_parsed_at_their_depths(
    tmp_path, copy, monkeypatch, capsys
):
    called = []
    monkeypatch.setattr(lay_recordings.subprocess, "call", lambda words: called.append(words) or 0)
    with pytest.raises(InputError, match="set --recordings"):
        lay(tmp_path)
    wanted = ("BTCUSDT_USDM", "BTCUSDT_USDM_202408", "BTCCNY_OKCOIN")
    some = [market for market in markets.MARKETS if market.pair in wanted]
    for file in chain.from_iterable(market.files for market in some):
        path = tmp_path / "recorded" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file)
    for _ in range(2):  # a second call replaces what is there
        lay(tmp_path, copy=copy)
    raw = {depth: tmp_path / "bench" / f"depth_{depth}" / "raw" for depth in (96, 40)}
    found = {depth: sorted(path.name for path in folder.iterdir()) for depth, folder in raw.items()}
    assert found == {96: sorted(wanted[:2]), 40: ["BTCCNY_OKCOIN", "BTCUSDT_USDM"]}
    for market in some:
        for depth in market.depths():
            names = [path.split("/")[-1] for path in market.files]
            laid = sorted((raw[depth] / market.pair).iterdir())
            assert [file.name for file in laid] == sorted(names)
            assert [file.read_text() for file in laid] == sorted(market.files)
            assert all(file.is_symlink() != copy for file in laid)
    keys = read_comments(ROOT / "data_parser.py")
    assert len(called) == 4 and {"--depth=96", "--depth=40"} <= {*called[0], *called[1]}
    assert all(word[2:].split("=")[0] in keys for words in called for word in words[2:])
    assert "ETHUSDT_USDM is left out: there is no binance/" in capsys.readouterr().out
    called.clear()
    lay(tmp_path, copy=copy, depths=[96], markets=["BTCUSDT_USDM_202408"])
    assert len(called) == 1 and "--pairs=['BTCUSDT_USDM_202408']" in called[0]
    for pairs in (["NONE"], ["BTCUSDT_USDM"], []):
        with pytest.raises(InputError, match="must be pairs of benchmarks/markets"):
            lay(tmp_path, markets=pairs, roles=["test"])
    monkeypatch.setattr(lay_recordings.subprocess, "call", lambda words: 2)
    with pytest.raises(InputError, match="stopped with status 2"):
        lay(tmp_path)
    with pytest.raises(InputError, match="must be of 96 and 40"):
        lay(tmp_path, depths=[20])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two small markets of 40 levels, and checkpoints of random weights for windows of 32."""
    folder = tmp_path_factory.mktemp("bench")
    for seed, (pair, day) in enumerate({VALIDATION: 0, TRAINING: 10}.items()):
        start = 1_675_209_600 * 10**9 - day * 86_400 * 10**9
        place = folder / "depth_40"
        write_book(place, pair, rows=6000, depth=40, seed=seed, start_ns=start, step_ns=10**9 // 4)
    encoder = encoder_config("tiny_transformer", depth=40, temporal_dim=32)
    for seed in range(2):
        torch.manual_seed(10 + seed)
        tensors = {f"model.{name}": x for name, x in BookEncoder(encoder).state_dict().items()}
        save_checkpoint(make_file(folder, f"run_{seed}"), tensors, metadata(encoder))
    return folder


def make_file(folder, run):
    file = folder / run / "checkpoints" / "best.safetensors"
    file.parent.mkdir(parents=True)
    return file


def bench(data, monkeypatch, **keys):
    monkeypatch.setattr(probes, "RESAMPLES", 30)
    monkeypatch.setattr(probe_fits, "TREES", 5)
    monkeypatch.setattr(probe_fits, "PENALTIES", (0.01, 1.0))
    monkeypatch.setattr(bench_probes, "TASKS", ("direction", "volatility_50"))
    small = {"windows": 400, "fit_windows": 200, "workers": 1, "device": "cpu"}
    paths = {"data_dir": str(data), "checkpoints": [str(data / f"run_{i}") for i in range(2)]}
    return bench_probes.main(bench_probes.config | small | paths | keys)


def test_the_bench_writes_all_cells_and_counts_them(data, monkeypatch, capsys):
    assert bench(data, monkeypatch) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    cells = {(row["case"], row["metric"]): row["value"] for row in result["rows"]}
    assert result["benchmark"] == "probes" and np.isfinite(list(cells.values())).all()
    metrics = [
        "ours",
        "both",
        "scaled",
        "all",
        "hand_made",
        "boosted",
        "floor",
        "pca",
        "random",
        "blocks",
    ]
    leads = ("over_floor", "adds", "all_adds")
    metrics += [f"{name}_{end}" for name in leads for end in ("low", "high")]
    for way in ("within", "probe"):
        case = f"{VALIDATION}_D40/{way}"
        for metric in metrics:
            assert (f"{case}/direction", metric) in cells, (way, metric)
        for metric in ("persistence", "ours_level", "ours_r2_test", "ours_bias"):
            assert (f"{case}/volatility_50", metric) in cells, (way, metric)
        least, value, most = (
            cells[f"{case}/direction", f"ours{name}"] for name in ("_least", "", "_most")
        )
        assert least < value < most and value == pytest.approx((least + most) / 2, abs=1e-5)
        counts = {name: cells[f"cells/{way}/adds", name] for name in ("compared", "undecided")}
        others = [cells[f"cells/{way}/adds", name] for name in ("better", "worse", "level")]
        assert counts["compared"] == 2 == sum(others) + counts["undecided"]
    notes = [row["note"] for row in result["rows"] if row["metric"] == "ours"]
    said = r"over_simple: \w+; scaled_\w+: \w+; adds: \w+; all_adds: \w+; simple: .*; median"
    assert all(re.search(said, x) for x in notes)
    check_tables({(row["case"], row["metric"]): row for row in result["rows"]}, monkeypatch)


def check_tables(cells, monkeypatch):
    """The tables' lines are made of what the bench wrote, and there are none without it."""
    monkeypatch.setattr(probe_tables, "read_cells", lambda name: {})
    assert probe_tables.make_bench() == []
    monkeypatch.setattr(probe_tables, "read_cells", lambda name: cells)
    monkeypatch.setattr(probe_tables, "describe_conditions", lambda name: ["conditions"])
    text = "\n".join(probe_tables.make_bench())
    for way in ("within", "probe"):
        case = f"{VALIDATION}_D40/{way}/direction"
        ours, lead = (cells[case, name]["value"] for name in ("ours", "over_simple"))
        assert f"{ours:.3f}" in text and f"/ {ours - lead:.3f}" in text
    known = cells[f"{VALIDATION}_D40/within/direction", "hand_made"]["value"]
    assert f"/ {known:.3f}" in text
    assert "Shanghai 600519, 1 February 2023 (40 levels) |" in text and VALIDATION not in text


def test_an_encoder_is_not_scored_on_a_day_that_it_was_trained_on(data, monkeypatch):
    encoder = encoder_config("tiny_transformer", depth=40, temporal_dim=32)
    tensors = {f"model.{name}": x for name, x in BookEncoder(encoder).state_dict().items()}
    for run, (pair, days, message) in enumerate(
        (
            (VALIDATION, None, f"was trained on {VALIDATION}: it can't be scored there"),
            ("OTHER", 0, "holds 2023-02-01, a day of OTHER, which"),
        )
    ):
        if days is not None:
            start = 1_675_209_600 * 10**9
            write_book(data / "depth_40", pair, rows=50, depth=40, start_ns=start)
        meta = metadata(encoder)
        book = meta["data"]["books"][0] | {"pair": pair}
        changed = meta["data"] | {"books": [book], "cuts_ns": [2 * 10**18, 2 * 10**18]}
        file = make_file(data, f"seen_{run}")
        save_checkpoint(file, tensors, meta | {"data": changed})
        with pytest.raises(InputError, match=message):
            bench(data, monkeypatch, checkpoints=[str(file)])


def test_a_wrong_market_or_none_is_refused(data, monkeypatch, capsys):
    with pytest.raises(InputError, match="'BTC' is none of the markets of validation; there are"):
        bench(data, monkeypatch, markets=["BTC"])
    with pytest.raises(InputError, match="no market of test has enough windows"):
        bench(data, monkeypatch, roles=["test"])
    assert "BTCCNY_OKCOIN is left out" in capsys.readouterr().out


def test_cells_that_are_shown_apart_are_not_counted():
    rows = []
    for market, low in (("A", 0.01), ("B", -0.03), ("APART", 0.01)):
        values = {"blocks": 40, "ours": 0.6, "over_simple": low + 0.02, "adds": low + 0.02}
        for lead in ("over_simple", "adds"):
            ends = {f"{lead}_low": low, f"{lead}_high": low + 0.04, f"{lead}_smallest": 0.029}
            values |= ends
        rows += [make_row(f"{market}/within/direction", *item) for item in values.items()]
    found = bench_probes.count_cells(rows, ["A", "B"])
    cells = {(row["case"], row["metric"]): row["value"] for row in found}
    case = "cells/within/over_simple"
    expected = {"compared": 2, "better": 1, "worse": 0, "level": 0, "undecided": 1}
    expected |= {"better_found": 1, "worse_found": 0, "false_expected": 0.1}
    assert {name: cells[case, name] for name in expected} == expected
    assert cells[case, "smallest_median"] == pytest.approx(0.029)
    assert not any(name.startswith("cells/probe") for name, _ in cells)


def test_a_cell_is_marked_by_its_verdict():
    values = {"ours": 0.61, "blocks": 30, "over_simple": 0.05, "both": 0.7, "hand_made": 0.7}
    for low, high, shown in (
        (0.01, 0.09, "**0.610** / 0.560"),
        (-0.09, -0.01, "0.610 / 0.560"),
        (-0.01, 0.01, "0.610 / 0.560 (=)"),
        (-0.09, 0.09, "0.610 / 0.560 (?)"),
    ):
        ends = {}
        for lead in ("over_simple", "adds"):
            ends |= {f"{lead}_low": low, f"{lead}_high": high}
        rows = [make_row("A/within/direction", *item) for item in (values | ends).items()]
        cells = {(row["case"], row["metric"]): row for row in rows}
        assert probe_tables.show_vector(cells, "A/within/direction") == shown
        both = probe_tables.show_both(cells, "A/within/direction")
        assert both.startswith("**0.700**" if low > 0 else "0.700 / 0.700")
    assert probe_tables.show_vector({}, "A/within/direction") == ""
