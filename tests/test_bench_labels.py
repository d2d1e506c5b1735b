"""The bench of labels on a small market whose next move is written into its best queues."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import metadata, write_book

from benchmarks import bench_labels, label_runs, label_tables
from benchmarks.label_runs import Job
from lob.book.states import open_book
from lob.config import InputError
from lob.evaluation import probe_fits, probes
from lob.evaluation.probe_tasks import HORIZONS
from lob.model.checkpoint import save_checkpoint
from lob.model.encoder import BookEncoder, encoder_config

MARKET, CELL = "SSE_600519_20230201", "SSE_600519_20230201_D40"
STATES, ROWS = 24, 6000
MODELS = bench_labels.config["models"]


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(probes, "RESAMPLES", 50)
    monkeypatch.setattr(probe_fits, "PENALTIES", (0.01, 1.0))
    monkeypatch.setattr(probe_fits, "VECTOR_PENALTIES", (1.0, 100.0))
    monkeypatch.setattr(probe_fits, "COMPONENTS", (4, None))
    yield
    for cache in (label_runs.open_splits, label_runs.open_recording, label_runs.load_encoder):
        cache.cache_clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A market that moves every fourth state, away from the side on which more is offered."""
    folder = tmp_path_factory.mktemp("labels")
    start = 1_675_209_600 * 10**9
    book = write_book(folder / "depth_40", MARKET, ROWS, 40, start_ns=start, step_ns=10**8)
    rng = np.random.default_rng(0)
    up = np.repeat(rng.integers(0, 2, ROWS // 20), 20)
    moves = np.where(np.arange(ROWS) % 4 == 3, 2 * up - 1, 0)
    best_bid = 100_000 + np.concatenate([[0], np.cumsum(moves)[:-1]])
    price = best_bid[:, None] + np.arange(-19, 21)
    sizes = rng.lognormal(0, 0.2, (ROWS, 40))
    sizes[np.arange(ROWS), np.where(up == 1, 19, 20)] *= 3
    np.save(book / "price_ticks.npy", price.astype(np.int32))
    np.save(book / "sizes.npy", sizes.astype(np.float32))
    np.save(book / "top_of_book.npy", price[:, 19:21].astype(np.int32))
    encoder = encoder_config("tiny_transformer", depth=40, temporal_dim=STATES)
    torch.manual_seed(0)
    tensors = {f"model.{name}": x for name, x in BookEncoder(encoder).state_dict().items()}
    file = folder / "run" / "checkpoints" / "best.safetensors"
    file.parent.mkdir(parents=True)
    save_checkpoint(file, tensors, metadata(encoder))
    return folder


def make_config(data, results, **keys):
    small = {"windows": 300, "judged_windows": 120, "tested_windows": 150, "steps": 60}
    small |= {"every": 20, "seeds": 1, "shares": [1.0], "tasks": ["direction"], "workers": 1}
    small |= {"batch_size": 16, "rates": dict.fromkeys(label_runs.RATES, 5e-3)}
    paths = {"data_dir": str(data), "results_dir": str(results), "encoder": str(data / "run")}
    return bench_labels.config | small | paths | {"device": "cpu"} | keys


def bench(data, results, capsys, **keys):
    """Run the bench; return its values by case and metric, and all that it printed."""
    assert bench_labels.main(make_config(data, results, **keys)) == 0
    printed = capsys.readouterr().out
    line = next(x for x in printed.splitlines() if x.startswith('{"benchmark"'))
    rows = json.loads(line)["rows"]
    assert len({(row["case"], row["metric"]) for row in rows}) == len(rows)
    return {(row["case"], row["metric"]): row for row in rows}, printed


@pytest.fixture
def settings(data, tmp_path):
    settings = bench_labels.make_settings(make_config(data, tmp_path))
    assert label_runs.prepare(settings, MARKET)
    return settings


def test_every_model_finds_what_decides_the_label(data, tmp_path, capsys, monkeypatch):
    shares, real = [0.1, 1.0], label_runs.fit_network

    def hasty(settings, job, *parts):
        """With few labels the networks of the literature are not trained, which saves seconds."""
        trained = job.share == 1 or job.model == "finetuned"
        return real(settings if trained else replace(settings, steps=0), job, *parts)

    monkeypatch.setattr(label_runs, "fit_network", hasty)
    cells, printed = bench(data, tmp_path, capsys, shares=shares)
    assert "left" not in printed
    settings = bench_labels.make_settings(make_config(data, tmp_path))
    fitted, judged, _ = (len(x.ends) for x in label_runs.open_task(settings, MARKET, "direction"))
    for model in MODELS:
        case = f"{CELL}/1/{model}/direction"
        assert cells[case, "score"]["value"] > 0.8, model
        assert cells[case, "labels"]["value"] == fitted and cells[case, "judged"]["value"] == judged
        few = cells[f"{CELL}/0.1/{model}/direction", "labels"]["value"]
        assert few == max(20, round(0.1 * fitted))
    for model in ("frozen", "finetuned"):
        case = f"{CELL}/1/{model}/direction"
        values = {name: row["value"] for (found, name), row in cells.items() if found == case}
        rivals = [cells[f"{CELL}/1/{x}/direction", "score"] for x in bench_labels.FROM_SCRATCH]
        best = max(row["value"] for row in rivals)
        assert values["over_best"] == pytest.approx(values["score"] - best, abs=1e-5)
        assert values["over_best_low"] <= values["over_best"] <= values["over_best_high"]
        assert values["blocks"] > 1
        simple = [cells[f"{CELL}/1/{name}/direction", "score"] for name in ("features", "floor")]
        best = max(row["value"] for row in simple)
        assert values["over_simple"] == pytest.approx(values["score"] - best, abs=1e-5)
    headline = cells[f"{CELL}/headline/direction", "over_best"]
    assert cells[f"{CELL}/1/{headline['note']}/direction", "score"]["value"] == max(
        cells[f"{CELL}/1/{name}/direction", "score"]["value"] for name in bench_labels.FROM_SCRATCH
    )
    assert cells["cells/headline", "compared"]["value"] == 1

    monkeypatch.setattr(label_runs, "fit_network", None)  # a second call fits nothing
    monkeypatch.setattr(label_runs, "fit_method", None)
    assert bench(data, tmp_path, capsys, shares=shares)[0] == cells
    check_tables(cells, monkeypatch)


def check_tables(cells, monkeypatch):
    monkeypatch.setattr(label_tables, "read_cells", lambda name: {})
    assert label_tables.make_label_tables() == []
    monkeypatch.setattr(label_tables, "read_cells", lambda name: cells)
    monkeypatch.setattr(label_tables, "describe_conditions", lambda name: ["conditions"])
    text = "\n".join(label_tables.make_label_tables())
    for model, words in label_tables.MODELS.items():
        score = cells[f"{CELL}/1/{model}/direction", "score"]["value"]
        assert f"{words} |" in text and f"{score:.3f}" in text, model
    assert "Shanghai 600519, 1 February 2023" in text and MARKET not in text
    figure = label_tables.draw_labels(cells)
    (axis,) = figure.axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert {*label_tables.MODELS.values()} <= {*lines}
    drawn = lines[label_tables.MODELS["tlob"]].get_xydata()
    expected = [[x, cells[f"{CELL}/{x:g}/tlob/direction", "score"]["value"]] for x in (0.1, 1)]
    np.testing.assert_allclose(drawn, expected)


def test_nothing_finds_labels_that_were_shuffled(data, tmp_path, capsys, monkeypatch):
    real = label_runs.describe_windows

    def shuffled(*given):
        found = real(*given)
        order = np.random.default_rng(5).permutation(len(found.block))
        return replace(found, labels={name: x[order] for name, x in found.labels.items()})

    monkeypatch.setattr(label_runs, "describe_windows", shuffled)
    models = ["frozen", "finetuned", "binctabl", "features"]
    cells, _ = bench(data, tmp_path, capsys, models=models)
    scores = [cells[f"{CELL}/1/{model}/direction", "score"]["value"] for model in models]
    assert all(0.35 < score < 0.65 for score in scores), scores  # three standard errors


def test_all_models_get_the_same_labels(settings, monkeypatch):
    given: dict[tuple, list] = {}

    def record(job, some, judged):
        given.setdefault((job.share, job.seed), []).append((some, judged))

    def network(settings, job, some, judged, test):
        record(job, some.windows, judged.windows)
        return test.windows.labels[job.task], 0

    def linear(method, task, some, judged, target, seed, refit):
        assert not refit
        record(job, some, judged)
        return lambda windows: windows.labels[task]

    monkeypatch.setattr(label_runs, "fit_network", network)
    monkeypatch.setattr(label_runs, "fit_method", linear)
    (settings.folder / MARKET / "direction").mkdir()
    for share in (0.001, 0.1, 1.0):
        for seed in range(2):
            for model in MODELS:
                job = Job(MARKET, "direction", model, share, seed)
                label_runs.run_job(settings, job)
                assert label_runs.read_result(settings, job)["score"] == 1.0
    for sets in given.values():
        assert len(sets) == len(MODELS)
        for number in range(2):
            first = sets[0][number].features["hand_made"]
            assert all(np.array_equal(x[number].features["hand_made"], first) for x in sets)
    few, ten, same = (given[key][0][0] for key in ((0.001, 0), (0.1, 0), (0.1, 1)))
    fitted = len(label_runs.open_task(settings, MARKET, "direction")[0].ends)
    assert len(few.block) >= 20 and len(ten.block) == len(same.block) == round(0.1 * fitted)
    assert not np.array_equal(ten.features["hand_made"], same.features["hand_made"])
    rows = {row.tobytes() for row in ten.features["hand_made"]}
    assert {row.tobytes() for row in few.features["hand_made"]} <= rows


def test_few_labels_hold_both_classes():
    labels = np.zeros(1000)
    labels[::100] = 1
    windows = probes.ProbeSet({}, {}, {"move_50": labels}, np.arange(1000))
    split = label_runs.Split(np.arange(1000), windows)
    for seed in range(5):
        found = label_runs.draw_labels(split, Job("", "move_50", "", 0.001, seed), 0)
        mine = found.windows.labels["move_50"]
        assert mine.sum() == 5 and len(mine) >= 20
        assert np.array_equal(found.ends, found.windows.block)
    whole = label_runs.draw_labels(split, Job("", "move_50", "", 1.0, 0), 1)
    assert np.array_equal(whole.ends, split.ends)


def test_no_state_of_another_part_is_needed(data, settings):
    book = open_book(data / "depth_40" / "book_states" / MARKET)
    borders = [0, ROWS // 2, ROWS * 2 // 3, ROWS]
    splits = label_runs.open_splits(settings, MARKET)
    for number, split in enumerate(splits):
        begin = borders[number] + (STATES if number else 0)
        assert (split.ends - STATES).min() >= begin
        for task, needed in HORIZONS.items():
            ends = split.ends[np.isfinite(split.windows.labels[task])]
            assert (ends + needed).max() <= borders[number + 1], task
    # What follows the training part changes nothing that is fitted there.
    other = book.path.with_name("OTHER")
    other.mkdir()
    for file in book.path.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    sizes = np.array(book.sizes)
    sizes[ROWS // 2 :] *= 7
    np.save(other / "sizes.npy", sizes)
    assert label_runs.prepare(settings, "OTHER")
    train, changed = (label_runs.open_splits(settings, pair)[0] for pair in (MARKET, "OTHER"))
    for name in ("features", "floors", "labels"):
        for key, values in getattr(train.windows, name).items():
            np.testing.assert_array_equal(getattr(changed.windows, name)[key], values)
    networks = []
    for pair in (MARKET, "OTHER"):
        job, targets = (
            Job(pair, "direction", "tlob", 1.0, 0),
            label_runs.Targets("direction", train.windows),
        )
        networks.append(label_runs.make_network(settings, job, train, train, targets))
    for name, value in networks[0].state_dict().items():
        assert torch.equal(value, networks[1].state_dict()[name]), name


@pytest.mark.parametrize("task", ["direction", "volatility_500"])
def test_tuning_begins_at_the_frozen_probe(settings, task):
    job = Job(MARKET, task, "finetuned", 1.0, 0)
    train, judge, test = label_runs.open_task(settings, MARKET, task)
    frozen = probes.fit_method(
        "scaled", task, train.windows, judge.windows, probes.MAIN, 0, refit=False
    )
    begun = replace(settings, steps=0)
    answer, step = label_runs.fit_network(begun, job, train, judge, test)
    assert step == 0
    expected = frozen(test.windows)
    np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-3 * np.ptp(expected))


def test_the_step_with_the_least_loss_is_kept(settings, monkeypatch):
    """Losses on the judged windows fall and rise: training stops, and gives the best step."""
    losses = iter([1.0, 0.5, 0.4, 0.6, 0.7, 0.8, 0.1])
    monkeypatch.setattr(label_runs, "measure_loss", lambda *_: next(losses))
    job = Job(MARKET, "direction", "binctabl", 1.0, 0)
    parts = label_runs.open_task(settings, MARKET, "direction")
    few = replace(settings, steps=60, every=2, patience=3)
    answer, step = label_runs.fit_network(few, job, *parts)
    assert step == 4 and next(losses) == 0.1
    losses = iter([1.0, 0.5, 0.4])
    again, _ = label_runs.fit_network(replace(few, steps=5), job, *parts)
    np.testing.assert_array_equal(answer, again)


def test_what_is_wrong_is_said(data, tmp_path, capsys):
    def refused(message, **keys):
        with pytest.raises(InputError, match=message):
            bench_labels.main(make_config(data, tmp_path, models=["floor"], **keys))

    refused("tasks = 'up' is none of direction", tasks=["up"])
    refused("rates = .*: give numbers between 0 and 1", rates={"tlob": 0})
    refused("no job was done: raise --seconds", seconds=1e-9)
    refused("results with another steps: remove it, or set another", steps=7)
    refused("no market of test has windows", roles=["test"], results_dir=str(tmp_path / "test"))
    _, printed = bench(data, tmp_path, capsys, models=["floor"], tasks=["direction", "widening"])
    assert f"{MARKET}/widening is left out: too few labels" in printed
    windows = tmp_path / MARKET / "windows.npz"
    there = dict(np.load(windows))
    np.savez(windows, **there | {"made_from": "another"})
    refused("as it was before it was parsed again: remove it")
