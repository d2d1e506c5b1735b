"""The tester: no leak from hidden or later values, a whole report, and what it refuses."""

import itertools
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import metadata, refusal, shell, write_book
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_ladder import moving_book
from torch.utils.tensorboard import SummaryWriter

import inference_testing
import lob.storage
from lob.book.states import identity, open_book, open_books
from lob.config import InputError
from lob.evaluation import fills, latency, probe_tasks, probes, report, scoring
from lob.evaluation.fills import hide
from lob.evaluation.ridge import FITTED, fit_ridges
from lob.model.checkpoint import load_model, save_checkpoint
from lob.model.encoder import BookEncoder, encoder_config
from lob.model.masking import MASKS, make_mask, trained_on, window_keys
from lob.results import TEST_SCORES
from lob.windows.splits import calendar_cuts, window_ends


def lively_encoder(depth, states, **choices):
    """Return an encoder whose head is not zero, so that its inputs show in its answers."""
    torch.manual_seed(0)
    config = encoder_config("tiny_transformer", depth=depth, temporal_dim=states, **choices)
    model = BookEncoder(config).eval()
    torch.nn.init.normal_(model.head.weight, std=0.1)
    return model


@pytest.mark.parametrize("poison", [float("nan"), 1e30])
@pytest.mark.parametrize("mode", MASKS)
def test_hidden_values_change_no_methods_answer(mode, poison):
    price_ticks, sizes = moving_book()
    mask = make_mask(window_keys(0, 0, torch.arange(2)), 40, 24, 0.25, mode)
    models = [
        lively_encoder(24, 40, fill=fill, normalization=scheme)
        for fill in ("none", "linear", "ladder")
        for scheme in ("book", "minmax")
    ]
    clean = hide(price_ticks, sizes, mask)
    other_prices = price_ticks.masked_fill(mask[..., 0], 123)
    other_sizes = sizes.masked_fill(mask[..., 1], poison)
    poisoned = hide(other_prices, other_sizes, mask)
    poisoned.values = torch.where(poisoned.known, poisoned.values, poison)
    fitted = fit_ridges([hide(*moving_book(seed=7), mask)], [clean])
    here = ~clean.known
    with torch.inference_mode():
        for model in models:
            expected, found = (scoring.fill(hidden, fitted, model) for hidden in (clean, poisoned))
            assert set(found) == {*fills.UNTRAINED, *FITTED, scoring.OURS}
            for method in found:
                assert torch.isfinite(found[method][here]).all(), method
                assert found[method][here].equal(expected[method][here]), method


def test_states_after_a_window_change_neither_embedding_nor_features(data_dir):
    book = open_book(data_dir / "book_states" / "BTC_USD")
    ends = np.array([300, 700, 1500])
    model = lively_encoder(96, 256)
    for end in ends:
        later = {
            "price_ticks": np.array(book.price_ticks),
            "sizes": np.array(book.sizes),
            "timestamps": np.array(book.timestamps),
        }
        later["price_ticks"][end:] += 1000
        later["sizes"][end:] *= 7
        later["timestamps"][end:] += 10**9
        changed, now = replace(book, **later), np.array([end])
        found, expected = (
            probes.encode_windows({"ours": model}, b, now, 4, torch.device("cpu"))
            | {"hand_made": probe_tasks.hand_made(b, now, 256)}
            for b in (changed, book)
        )
        assert set(found) == {"ours", "pca", "hand_made", "scale"}
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name])
    labels = [probe_tasks.label_windows(b, ends) for b in (book, changed)]
    assert not np.array_equal(labels[0]["volatility_50"], labels[1]["volatility_50"])


@pytest.fixture(scope="module")
def checkpoint(sampled, tmp_path_factory):
    """A checkpoint of an encoder that was not trained, with the calendar cuts of `sampled`."""
    book = open_book(sampled / "book_states" / "BTC_USD")
    cuts = calendar_cuts([book], [0.7, 0.25, 0.05])
    model = lively_encoder(16, 32, fill="ladder")
    file = tmp_path_factory.mktemp("runs") / "a" / "checkpoints" / "best.safetensors"
    meta = metadata(
        model.config,
        data={"books": [{"pair": "BTC_USD"}], "cuts_ns": cuts.tolist()},
        config={"model_size": "tiny_transformer", "mask_mode": "entry"},
    )
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_checkpoint(file, tensors, meta)
    return file


def run_tester(*words):
    return shell("inference_testing.py", *words)


SMALL = ("--windows=12", "--fit_windows=8", "--batch_size=8", "--block_states=64")
SMALL += ("--latency_runs=2",)
METRICS = (
    "error",
    "best_untrained_error",
    "ridge_error",
    "skill_untrained",
    "skill_ridge",
    "median_error",
    "win_rate_naive",
    "difference_naive_low",
    "blocks",
)


def test_the_report_holds_every_case_and_what_it_was_measured_with(sampled, checkpoint):
    done = run_tester(
        f"--data_dir={sampled}",
        f"--model_path={checkpoint}",
        "--probe_windows=160",
        "--masks=['entry','tail']",
        "--split=validation",
        *SMALL,
    )
    assert done.returncode == 0, done.stderr
    folder = checkpoint.parent.parent
    stored = json.loads((folder / "report.json").read_text())
    assert stored["benchmark"] == "representation"
    cells = {(row["case"], row["metric"]): row["value"] for row in stored["rows"]}
    assert np.isfinite(list(cells.values())).all()
    quantities = scoring.QUANTITIES
    for mask, quantity, metric in itertools.product(("entry", "tail"), quantities, METRICS):
        assert (f"BTC_USD/{mask}/{quantity}", metric) in cells
    for task in ("direction", "volatility_50"):
        assert (f"BTC_USD/probe/{task}", "hand_made") in cells
    for name in ("fills", "errors"):
        assert (folder / f"BTC_USD_{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    text = (folder / "report.md").read_text()
    assert "undecided" in text
    for name in (*quantities, *probe_tasks.TASKS):
        assert f"- {name}: " in text
    for shown in (done.stdout, text):
        assert "penalties were chosen on these windows" in shown
    for mask, unseen in (("entry", False), ("tail", True)):
        assert (f"mask {mask}, not trained on this mask" in text) == unseen
        assert (f"mask {mask}, not trained on this mask" in done.stdout) == unseen
        assert cells[f"BTC_USD/{mask}/log_size", "trained_on"] == (not unseen)
    verdict = "(better than|worse than|level with|equal to|undecided beside) "
    for begins, ends in (
        ("  log of size", f"({'|'.join(report.METHODS.values())})"),
        ("direction ", "(floor|persistence|hand-made features)"),
    ):
        told = [line for line in done.stdout.splitlines() if line.startswith(begins)]
        assert told and all(re.search(f"   {verdict}{ends}$", line) for line in told)
    assert "(step 0, the weights before training: no later ones" in done.stdout
    assert "lower is better" in done.stdout
    lines = done.stdout.splitlines()
    assert not [line for line in lines if "| " in line]
    assert not [line for line in lines if len(line) > 120 and str(folder) not in line]
    assert sum(line.startswith("  log of size (squared error)") for line in lines) == 2


def test_a_short_market_is_not_probed_unless_asked(sampled, checkpoint, monkeypatch):
    model, meta = load_model(checkpoint)
    books = open_books(sampled, None, model.config.depth)
    config = {**inference_testing.config, "data_dir": str(sampled), "split": "validation"}
    selection, _ = inference_testing.select_windows(config, model, meta, books)
    count, why = inference_testing.plan_probes(None, selection, books[0])
    ends = selection.tested(books[0], probe_tasks.HORIZON)
    times = books[0].timestamps
    minutes = (times[ends[-1] - 1] - times[ends[0] - 32]) / 60e9
    assert count == 0 and f"span {minutes:.1f} minutes of market" in why
    assert "--probe_windows=400 fits them all the same" in why
    assert inference_testing.plan_probes(400, selection, books[0]) == (400, "")
    assert inference_testing.plan_probes(0, selection, books[0]) == (0, "")
    monkeypatch.setattr(inference_testing, "PROBE_MINUTES", minutes)
    assert inference_testing.plan_probes(None, selection, books[0]) == (400, "")
    monkeypatch.setattr(inference_testing, "HORIZON", 10**6)
    count, why = inference_testing.plan_probes(400, selection, books[0])
    assert count == 0 and "a split has no window with 1000000 states after it" in why


def test_a_test_joins_the_events_of_its_run_once(sampled, checkpoint, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(checkpoint.parent.parent, run)
    words = {"windows": 6, "fit_windows": 6, "batch_size": 8, "latency_runs": 1, "masks": ["entry"]}
    folders = {"data_dir": str(sampled), "model_path": str(run / "checkpoints" / checkpoint.name)}
    config = {**inference_testing.config, **words, **folders, "pictures": False}
    inference_testing.main(config)
    assert not list(run.glob("events.*"))  # no run's events to add to
    with SummaryWriter(str(run)) as writer:
        writer.add_scalar("loss/train", 1.0, 20)
    inference_testing.main({**config, "pictures": True})
    inference_testing.main({**config, "pictures": True})
    assert "(no probes: the tested windows span " in capsys.readouterr().out
    board = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    assert set(board.Tags()["scalars"]) == {"loss/train", *TEST_SCORES.values()}
    rows = json.loads((run / "report.json").read_text())["rows"]
    cells = {(row["case"], row["metric"]): row["value"] for row in rows}
    for name, tag in TEST_SCORES.items():
        skill = cells["BTC_USD/entry/log_size", f"skill_{name}"]
        assert [event.value for event in board.Scalars(tag)] == [pytest.approx(skill)] * 2
    assert {*board.Tags()["images"]} == {"test/BTC_USD_fills", "test/BTC_USD_errors"}
    text = board.Tensors("test/text_summary")
    assert len(text) == 1 and b"# Accuracy of" in text[0].tensor_proto.string_val[0]


def test_masks_in_training_are_those_that_windows_get():
    keys = window_keys(0, 0, torch.arange(400))
    each = {mode: make_mask(keys, 64, 16, 0.25, mode) for mode in MASKS}
    mix = make_mask(keys, 64, 16, 0.25, "mix")
    found = {mode for mode in MASKS if (each[mode] == mix).flatten(1).all(1).float().mean() > 0.05}
    assert found == trained_on("mix") == {"patch", "span", "tail", "entry"}
    assert trained_on("span64") == {"span64"}


def test_hidden_cells_are_grey_in_the_masked_panel_alone():
    from lob.evaluation.pictures import draw_fills

    prices = np.tile(np.array([100.0, 102.0, 104.0, 109.0]), (6, 1))
    sizes, hidden = np.tile(np.array([1.0, 2.0, 3.0, 4.0]), (6, 1)), np.zeros((6, 4), dtype=bool)
    hidden[2:4, 1:3] = True
    fills = {"truth": (prices, sizes), "encoder": (prices, 10 * sizes)}
    figure = draw_fills(fills, hidden, {"encoder": "1 tick off"}, 0.5, "of a model")
    truth, masked, encoder = (axis.images for axis in figure.axes[:3])
    assert (len(truth), len(masked), len(encoder)) == (1, 2, 1)
    assert figure.axes[-1].get_ylabel().startswith("resting size")
    assert truth[0].get_clim() == encoder[0].get_clim()  # the bar holds for all
    grey = ~np.ma.getmaskarray(masked[1].get_array())
    assert grey[2:7, 2:4].all() and not grey[[0, 7, 8, 9]].any() and not grey[:, [0, 1, 4, 5]].any()


def test_an_unseen_instrument_is_scored_with_the_ridge_of_the_seen_one(
    sampled, checkpoint, tmp_path
):
    write_book(tmp_path, "ETH_USD", rows=800, depth=16, seed=5)
    words = (
        f"--data_dir={tmp_path}",
        f"--model_path={checkpoint}",
        "--split=all",
        "--allow_earlier=True",
        "--masks=['patch']",
        *SMALL,
        "--probe_windows=0",
        "--pictures=False",
    )
    alone = run_tester(*words)
    assert alone.returncode == 0 and "ridge regression left out" in alone.stdout, alone.stderr
    done = run_tester(*words, f"--fit_data_dir={sampled}")
    assert done.returncode == 0 and "left out" not in done.stdout, done.stderr
    rows = json.loads((checkpoint.parent.parent / "report.json").read_text())["rows"]
    metrics = {row["metric"] for row in rows if row["case"] == "ETH_USD/patch/log_size"}
    assert {"skill_ridge", "skill_untrained"} <= metrics
    times = open_book(tmp_path / "book_states" / "ETH_USD").timestamps
    late = np.datetime_as_string(np.asarray(times[400]).astype("datetime64[ns]"), unit="ms")
    assert run_tester(*words, f"--dates=['{late}','2030-01-01']").returncode == 0
    none = run_tester(*words, "--dates=['2030-01-01','2031-01-01']")
    assert none.returncode == 2 and none.stderr.count("\n") == 1
    assert "has no window in the split 'all'" in none.stderr
    write_book(tmp_path, "LATER", rows=200, depth=16, start_ns=int(times[-1]) + 10**15)
    one = run_tester(*words, f"--dates=['{late}','2026-05-03']", "--windows=1000")
    assert one.returncode == 0, one.stderr
    assert "LATER: left out, it has no window in the split 'all'" in one.stdout
    count = len(times) - 400 - 32 + 1
    assert f"({count} windows, not 1,000: the split has no more)" in one.stdout
    none = run_tester(*words, "--dates=['2030-01-01','2031-01-01']")
    assert none.returncode == 2 and "has no window in the split 'all'" in none.stderr


def test_the_encoder_is_timed_as_it_can_be_run(monkeypatch):
    monkeypatch.delitem(latency.VARIANTS, "compiled")  # takes a minute
    model, price_sizes = lively_encoder(24, 40), moving_book(16)
    found = latency.benchmark(model, price_sizes, 2, ["cpu"])
    cells = {(row["case"], row["metric"]): row["value"] for rows in found for row in rows}
    for variant in ("eager", "torchscript"):
        assert 0 < cells[f"latency/cpu/{variant}", "p50"] <= cells[f"latency/cpu/{variant}", "p99"]
        assert cells[f"latency/cpu/{variant}", "windows_per_second"] > 0
    assert not any("stream" in case for case, _ in cells)  # this encoder needs whole windows
    encode = latency.window_encoder(model, "last")
    traced = latency.VARIANTS["torchscript"](encode, *(x[:1] for x in price_sizes))
    with torch.inference_mode():
        torch.testing.assert_close(traced(*price_sizes), encode(*price_sizes))


def test_a_causal_encoder_is_timed_as_a_stream_too(monkeypatch):
    monkeypatch.setattr(latency, "VARIANTS", {"stream": latency.VARIANTS["stream"]})
    model = lively_encoder(24, 40, causal=True)
    (rows,) = latency.benchmark(model, moving_book(16), 2, ["cpu"])
    assert {row["case"] for row in rows} == {"latency/cpu/stream"}
    assert all(row["value"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--mask_perc=1.0", "mask_perc = 1.0 must be > 0 and < 1"),
        ("--windows=0", "windows = 0 must be >= 1"),
        ("--probe_windows=-1", "probe_windows = -1 must be >= 0"),
        ("--seed=-1", "seed = -1 must be >= 0"),
    ],
)
def test_numbers_out_of_bounds_are_refused(word, message):
    assert message in refusal("inference_testing.py", word)


def test_dates_are_refused_by_their_own_key(sampled, checkpoint):
    words = (f"--data_dir={sampled}", f"--model_path={checkpoint}")
    done = run_tester(*words, "--dates=['2026-05-01', 'May']")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "dates = ['2026-05-01', 'May']" in done.stderr and "split_ratios" not in done.stderr


def test_a_run_that_takes_no_report_is_refused_before_it_is_scored(
    sampled, checkpoint, monkeypatch, capsys
):
    monkeypatch.setattr(lob.storage.os, "access", lambda *_: False)
    config = {**inference_testing.config, "data_dir": str(sampled), "model_path": str(checkpoint)}
    with pytest.raises(InputError, match="can't be written"):
        inference_testing.main(config)
    assert capsys.readouterr().out == ""


def test_windows_of_the_test_split_are_neither_fitted_nor_probed_on(sampled, checkpoint):
    model, meta = load_model(checkpoint)
    books = open_books(sampled, None, model.config.depth)
    config = {**inference_testing.config, "data_dir": str(sampled)}
    selection, _ = inference_testing.select_windows(config, model, meta, books)
    book = books[0]
    tested = selection.tested(book)
    first = tested.min() - 32
    for split in ("train", "validation"):
        for _, ends in selection.to_fit(book, split, 10**6, probe_tasks.HORIZON):
            # After the window and its horizon there is an embargo of a window's length.
            assert len(ends) and ends.max() + probe_tasks.HORIZON <= first - 32
    possible = window_ends(book.segment_starts, book.rows, 32)
    assert len(np.intersect1d(tested, possible)) == len(tested)
    everything = {**config, "split": "all", "fit_data_dir": str(sampled), "allow_earlier": True}
    whole, _ = inference_testing.select_windows(everything, model, meta, books)
    assert whole.to_fit(book, "train", 8) == []
    meta["seen"]["books"] = [identity(book)]
    with pytest.raises(InputError, match="BTC_USD was trained on"):
        inference_testing.select_windows(everything, model, meta, books)
