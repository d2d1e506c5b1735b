"""Recipes are compared on windows that none of them was trained on, with the base beside them."""

import json
from types import SimpleNamespace

import pytest
from conftest import shell, write_book

from benchmarks import bench_recipes
from lob.config import InputError

SMALL = {"model_size": "tiny_transformer", "depth_dim": 16, "temporal_dim": 32, "epochs": 1}
SMALL |= {"batch_size": 350, "max_gpus": 1, "outlook": 0.0, "precision": "fastest"}


CUTS = [0.7, 0.25, 0.05]
VARIANTS = {"base": {}, "again": {}, "without": {"fill": "none"}}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A config of three variants that are trained already, each in a second."""
    data = tmp_path_factory.mktemp("recipes")
    write_book(data, rows=6000, depth=16)
    words = [f"--data_dir={data}", "--temporal_dim=32"]
    sample = ["--cells=[1,1,1]", "--min_stride=1", "--windows=1000"]
    for command in (["exploration_main.py"], ["create_balanced_dataset.py", *sample]):
        assert shell(*command, *words, "--plots=False").returncode == 0
    write_book(data, "OTHER", rows=3000, depth=16, seed=2)
    write_book(data, "TESTED", rows=3000, depth=16, seed=3)
    for name, keys in VARIANTS.items():
        mine = (
            bench_recipes.RECIPE
            | SMALL
            | keys
            | {"data_dir": data, "runs_dir": data / "runs", "model_name": name}
        )
        words = [f"--{key}={value}" for key, value in mine.items()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lob.training.run_log.RunLog.picture", lambda *_: None)
            done = shell("fp8_ddp_trainer.py", *words, "--pairs=['BTC_USD']")
        assert done.returncode == 0, done.stderr
    own = {"data_dir": str(data), "runs_dir": str(data / "runs"), "pairs": ["BTC_USD"]}
    own |= {"split_ratios": CUTS, "recipe": SMALL, "variants": VARIANTS, "masks": ["patch"]}
    return bench_recipes.config | own | {"windows": 16, "fit_windows": 16, "batch_size": 5}


@pytest.fixture(autouse=True)
def markets(monkeypatch):
    roles = {"OTHER": "validation", "TESTED": "test"}
    made = [SimpleNamespace(pair=pair, role=role) for pair, role in roles.items()]
    monkeypatch.setattr(bench_recipes, "MARKETS", made)


def test_variants_are_set_beside_the_base_on_windows_that_none_was_trained_on(
    settings, monkeypatch, capsys
):
    trained = []
    monkeypatch.setattr("benchmarks.prove.call", lambda script, *_: trained.append(script))
    assert bench_recipes.main(settings) == 0
    assert not trained  # the runs had ended
    printed = capsys.readouterr().out
    rows = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))["rows"]
    cells = {(row["case"], row["metric"]): row["value"] for row in rows}
    assert {case.split("/")[1] for case, _ in cells if "/" in case} == {"BTC_USD", "OTHER"}
    for market in ("BTC_USD", "OTHER"):
        for name in ("base", "again"):
            case = f"{name}/{market}/patch"
            assert cells[case, "gain"] == cells[case, "gain_low"] == cells[case, "gain_high"] == 0
        base, without = (cells[f"{name}/{market}/patch", "error"] for name in ("base", "without"))
        gain, low, high = (
            cells[f"without/{market}/patch", f"gain{end}"] for end in ("", "_low", "_high")
        )
        assert gain == pytest.approx(1 - without / base, abs=1e-5) and gain < -0.1
        assert low < gain < high  # wide, since a market has two or three blocks of time
        # A network that has hardly been trained answers as its fill does.
        assert cells[f"base/{market}/patch", "skill_ladder"] == pytest.approx(0, abs=0.05)
    assert cells["base", "parameters"] == cells["again", "parameters"] > 1e5
    table = printed[printed.index("OTHER, gain, %") :]
    assert "base" in table and "without" in table and "no time" not in printed


def test_windows_of_trained_pairs_are_of_validation(settings):
    (book, ends), (other, others) = bench_recipes.find_markets(settings)
    cuts = bench_recipes.find_cuts(settings)
    assert book.pair == "BTC_USD" and other.pair == "OTHER"
    assert (book.timestamps[ends - 32] >= cuts[0]).all()
    assert (book.timestamps[ends - 1] < cuts[1]).all()
    assert others[0] == 32 and others[-1] == other.rows
    ((fitted, training),) = bench_recipes.find_training(settings)
    assert fitted.pair == "BTC_USD" and (book.timestamps[training - 1] < cuts[0]).all()


def test_what_there_was_no_time_for_is_named(settings, monkeypatch, capsys):
    with pytest.raises(InputError, match="'base'"):
        bench_recipes.main(settings | {"seconds": 1e-9})
    real = bench_recipes.train_variants

    def two(*given):
        return {name: folder for name, folder in real(*given).items() if name != "without"}

    monkeypatch.setattr(bench_recipes, "train_variants", two)
    assert bench_recipes.main(settings) == 0
    assert "no time was left for without" in capsys.readouterr().out
