"""The tester: no leak from hidden or later values, right statistics, a whole report."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, metadata, refusal, write_book
from sklearn import linear_model, metrics
from test_ladder import moving_book

import inference_testing
import lob.storage
from benchmarks import prove
from lob.book.states import identity, open_book, open_books
from lob.config import InputError
from lob.evaluation import fills, intervals, latency, probe_tasks, probes, report, scoring
from lob.evaluation.fills import COLUMNS, fill_untrained, hide
from lob.evaluation.ridge import FITTED, Moments, features, fit_ridges
from lob.model.checkpoint import load_model, save_checkpoint
from lob.model.encoder import BookEncoder, encoder_config
from lob.model.masking import MASKS, make_mask, trained_on, window_keys
from lob.windows.splits import calendar_cuts, window_ends


def lively_encoder(depth, states, **choices):
    """An encoder whose head is not zero, so that what it is fed shows in what it answers."""
    torch.manual_seed(0)
    model = BookEncoder(
        encoder_config("tiny_transformer", depth=depth, temporal_dim=states, **choices)
    ).eval()
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
    poisoned = hide(
        price_ticks.masked_fill(mask[..., 0], 123), sizes.masked_fill(mask[..., 1], poison), mask
    )
    poisoned.values = torch.where(poisoned.known, poisoned.values, poison)
    fitted = fit_ridges([hide(*moving_book(seed=7), mask)], [clean])
    with torch.inference_mode():
        for model in models:
            expected, found = (scoring.fill(hidden, fitted, model) for hidden in (clean, poisoned))
            assert set(found) == {*fills.UNTRAINED, *FITTED, scoring.OURS}
            for method in found:
                assert torch.isfinite(found[method][~clean.known]).all(), method
                assert found[method][~clean.known].equal(expected[method][~clean.known]), method


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
        assert set(found) == {"ours", "pca", "hand_made"}
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name])
    labels = [probe_tasks.label_windows(b, ends) for b in (book, changed)]
    assert not np.array_equal(labels[0]["volatility_50"], labels[1]["volatility_50"])


def test_labels_are_those_of_a_slow_reading(data_dir):
    book = open_book(data_dir / "book_states" / "BTC_USD")
    ends = np.arange(300, 2400, 37)
    labels = probe_tasks.label_windows(book, ends)
    bid, ask = book.price_ticks[:, 47].astype(int), book.price_ticks[:, 48].astype(int)
    for i, end in enumerate(ends):
        now, mids = end - 1, (bid + ask) / 2
        moves = [k for k in range(1, 501) if mids[now + k] != mids[now]]
        up = float(mids[now + moves[0]] > mids[now]) if moves else np.nan
        np.testing.assert_equal(labels["direction"][i], up)
        for reach in (10, 50):
            assert labels[f"move_{reach}"][i] == any(k <= reach for k in moves)
        gone = [
            next((k for k in range(1, 501) if side(k)), 501)
            for side in (lambda k, n=now: bid[n + k] < bid[n], lambda k, n=now: ask[n + k] > ask[n])
        ]
        np.testing.assert_equal(
            labels["depletion"][i], np.nan if gone[0] == gone[1] else float(gone[1] < gone[0])
        )
        spread = (ask - bid)[now : now + 51]
        assert labels["widening"][i] == (spread[1:] > spread[0]).any()
        returns = np.diff(np.log(mids[now : now + 51])) * 1e4
        assert labels["volatility_50"][i] == pytest.approx(np.log1p(np.sqrt((returns**2).sum())))


def test_ridge_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(500, 6)) * [1, 10, 0.1, 3, 1, 1], rng.normal(size=500)
    y = x @ rng.normal(size=6) + noise
    moments = Moments()
    for part in np.split(np.arange(500), 5):
        moments.add(torch.from_numpy(x[part]), torch.from_numpy(y[part]))
    scale = np.sqrt((x**2).mean(0))
    theirs = (
        linear_model.Ridge(alpha=0.3 * 500, fit_intercept=False).fit(x / scale, y).coef_ / scale
    )
    np.testing.assert_allclose(moments.solve(0.3), theirs, rtol=1e-6)
    assert moments.error(theirs) == pytest.approx(np.mean((y - x @ theirs) ** 2))


def with_constant(x):
    return np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(len(x))])


def penalties_of(columns, penalty, count):
    """Diagonal matrix of the penalty of each weight: the last one, of the constant, is free."""
    return np.diag([penalty * count] * columns + [0.0])


@pytest.mark.parametrize("penalty", probes.PENALTIES)
def test_ridge_probe_is_the_closed_form(penalty):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6)) * [1, 10, 0.1, 3, 1, 1] + 5
    y = x @ rng.normal(size=6) + rng.normal(size=500)
    full = with_constant(x)
    weights = np.linalg.solve(full.T @ full + penalties_of(6, penalty, 500), full.T @ y)
    probe = probes.fit_probe(x, y, penalty, classify=False)
    np.testing.assert_allclose(probe(x), full @ weights, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("penalty", probes.PENALTIES)
@pytest.mark.parametrize("noise", [1.0, 0.0])  # without noise the classes can be separated
def test_logistic_probe_is_the_minimum_of_the_penalised_likelihood(penalty, noise):
    """The reference takes 300 small steps of Newton's method on the written-down gradient."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 5)) * [1, 10, 0.1, 3, 1]
    y = (x @ [1, 0.1, 0, 0.3, -1] + noise * rng.normal(size=400) > 0.5).astype(float)
    full, ridge = with_constant(x), penalties_of(5, penalty, 400)
    weights = np.zeros(6)
    for _ in range(300):
        probability = 1 / (1 + np.exp(-full @ weights))
        gradient = full.T @ (probability - y) + ridge @ weights
        curvature = full.T @ (full * (probability * (1 - probability))[:, None]) + ridge
        weights -= 0.3 * np.linalg.solve(curvature, gradient)
    assert np.abs(gradient).max() < 1e-9
    np.testing.assert_allclose(
        probes.fit_probe(x, y, penalty, classify=True)(x), full @ weights, rtol=1e-6, atol=1e-6
    )


def test_area_under_curve_counts_pairs_and_log_loss_is_of_logits():
    rng = np.random.default_rng(1)
    score, y = rng.normal(size=200).round(1), (rng.random(200) > 0.6).astype(float)
    ones, zeros = score[y == 1], score[y == 0]
    pairs = [(one > zero) + 0.5 * (one == zero) for one in ones for zero in zeros]
    assert probes.area_under_curve(score, y) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert probes.area_under_curve(score, y) == pytest.approx(
        metrics.roc_auc_score(y, score), abs=1e-12
    )
    likelihood = np.where(y == 1, 1 / (1 + np.exp(-score)), 1 / (1 + np.exp(score)))
    assert probes.log_loss(score, y) == pytest.approx(-np.log(likelihood).mean())
    assert np.isnan(probes.area_under_curve(score, np.ones(200)))


def test_bootstrap_has_the_width_of_the_theory_and_counts_blocks():
    rng = np.random.default_rng(2)
    block = np.repeat(np.arange(100), 5)
    difference = np.repeat(rng.normal(1.0, 2.0, 100), 5)  # windows of one block tell the same
    low, high, blocks = intervals.bootstrap(difference, block, 0)
    assert blocks == 100
    assert (high - low) / 2 == pytest.approx(1.96 * difference.std() / 10, rel=0.1)
    assert low < difference.mean() < high
    assert intervals.verdict(low, high) == "worse" and scoring.verdict(-1, 1) == "undecided"


def test_best_naive_is_chosen_on_validation_not_on_the_test_windows():
    ours = np.array([1.0, 1.0, 1.0, 1.0])
    test = {
        "log_size": {
            "linear_time": ours * 2,
            "ladder": ours * 1.5,
            "ridge_ladder": ours * 3,
            scoring.OURS: ours,
        }
    }
    chosen = {"log_size": {"linear_time": ours, "ladder": ours * 5, "ridge_ladder": ours * 2}}
    found = scoring.compare(test, chosen, np.arange(4), 0)["log_size"]
    assert (
        found.untrained.method == found.naive.method == "linear_time" and found.untrained.error == 2
    )
    assert (
        found.untrained.skill == 0.5
        and found.naive.win_rate == 1
        and found.naive.verdict == "better"
    )
    assert found.ridge.error == 3 and found.ridge.skill == pytest.approx(2 / 3)


def test_every_naive_methods_error_is_reported_under_its_own_name():
    names = [*fills.UNTRAINED, *FITTED, scoring.OURS]
    errors = {"log_size": {name: np.full(4, 1.0 + number) for number, name in enumerate(names)}}
    found = scoring.compare(errors, errors, np.arange(4), 0)
    scores = scoring.MaskScores("BTC", "patch", False, True, 4, found)
    facts = {row["metric"]: row["value"] for row in report.rows_of_scores(scores)}
    for number, name in enumerate(names[:-1]):
        assert facts[f"{name}_error"] == 1.0 + number
    assert facts["ridge_error"] == facts["ridge_ladder_error"]


@pytest.mark.parametrize("count", [6, 7, 44])
def test_intervals_hold_the_truth_in_95_percent_of_cases(count):
    rng = np.random.default_rng(3)
    block = np.repeat(np.arange(count), 16)
    held = 0
    for seed in range(400):
        low, high, _ = intervals.bootstrap(
            rng.normal(size=count)[block] + rng.normal(size=len(block)), block, seed
        )
        held += low < 0 < high
    assert 0.92 < held / 400 < 0.98


def test_one_block_of_time_decides_nothing():
    low, high, blocks = intervals.bootstrap(np.array([-0.1, -0.3, -0.2]), np.zeros(3), 0)
    assert (
        blocks == 1 and np.isnan([low, high]).all() and intervals.verdict(low, high) == "undecided"
    )
    labels = np.array([0.0, 1.0, 0.0, 1.0])
    drawn = [
        probes.resample(probes.area_under_curve, x, labels, np.zeros(4), 0)
        for x in (labels, 1 - labels)
    ]
    assert np.isnan(intervals.interval(drawn[0] - drawn[1], 1.0, 1)).all()


def test_prices_that_differ_by_rounding_alone_are_ties():
    ladder = np.array([0.25, 0.5, 0.0, 0.125])
    errors = {"offset": {"ladder": ladder, scoring.OURS: ladder + 7e-6}}
    untrained = scoring.compare(errors, errors, np.arange(4), 0)["offset"].untrained
    assert untrained.verdict == "undecided" and untrained.win_rate == 0.5
    worse = {"offset": {"ladder": ladder, scoring.OURS: ladder + 1e-3}}
    assert scoring.compare(worse, worse, np.arange(4), 0)["offset"].untrained.verdict == "worse"


def test_ridge_with_the_ladder_beats_both_of_its_parts():
    mask = make_mask(window_keys(0, 0, torch.arange(24)), 40, 24, 0.25, "patch")
    training, test = (hide(*moving_book(24, seed=seed), mask) for seed in (1, 2))
    fitted = fit_ridges([training], [test])
    filled, found = fill_untrained(test)
    assert [table.shape[1] for table in features(test, filled, found)] == [
        FITTED["ridge_ladder"]
    ] * len(COLUMNS)
    errors = {}
    for name, columns in (filled | fitted.fill(test, filled, found)).items():
        errors[name] = float(((columns - test.values)[..., 1][test.mask[..., 1]] ** 2).mean())
    assert errors["ridge_ladder"] < min(
        errors["ladder"], errors["plain_ridge"], errors["linear_time"]
    )


@pytest.fixture(scope="module")
def checkpoint(sampled, tmp_path_factory):
    """A checkpoint of an encoder that was not trained, with the calendar cuts of `sampled`."""
    book = open_book(sampled / "book_states" / "BTC_USD")
    cuts = calendar_cuts([book.timestamps], [book.segment_starts], [0.7, 0.25, 0.05])
    model = lively_encoder(16, 32, fill="ladder")
    file = tmp_path_factory.mktemp("runs") / "a" / "checkpoints" / "best.safetensors"
    meta = metadata(
        model.config,
        data={"books": [{"pair": "BTC_USD"}], "cuts_ns": cuts.tolist()},
        config={"model_size": "tiny_transformer", "mask_mode": "entry"},
    )
    save_checkpoint(
        file, {f"model.{name}": tensor for name, tensor in model.state_dict().items()}, meta
    )
    return file


def run_tester(*words):
    return subprocess.run(
        [sys.executable, "inference_testing.py", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


SMALL = (
    "--windows=12",
    "--fit_windows=8",
    "--block_states=64",
    "--latency_runs=2",
    "--batch_size=8",
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
    assert all(
        "penalties were chosen on these windows" in x
        for x in (done.stdout, (folder / "report.md").read_text())
    )
    for mask in ("entry", "tail"):
        for quantity in scoring.QUANTITIES:
            for suffix in ("", "/balanced"):
                for metric in (
                    "error",
                    "best_untrained_error",
                    "ridge_error",
                    "skill_untrained",
                    "skill_ridge",
                    "median_error",
                    "win_rate_naive",
                    "difference_naive_low",
                    "blocks",
                ):
                    assert (f"BTC_USD/{mask}/{quantity}{suffix}", metric) in cells
    for task in ("direction", "volatility_50"):
        assert {f"BTC_USD/probe/{task}"} & {case for case, metric in cells if metric == "hand_made"}
    for name in ("fills", "errors"):
        assert (folder / f"BTC_USD_{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    text = (folder / "report.md").read_text()
    assert "undecided" in text and all(
        f"- {q}: " in text for q in (*scoring.QUANTITIES, *probe_tasks.TASKS)
    )
    for mask, unseen in (("entry", False), ("tail", True)):
        assert (f"mask {mask}, not trained on this mask" in text) == unseen
        assert (f"mask {mask}, not trained on this mask" in done.stdout) == unseen
        assert cells[f"BTC_USD/{mask}/log_size", "trained_on"] == (not unseen)
    assert (
        "(step 0, the weights before training: no later ones" in done.stdout
        and "lower is better" in done.stdout
    )
    lines = done.stdout.splitlines()
    assert not [
        line for line in lines if "| " in line or (len(line) > 120 and str(folder) not in line)
    ]
    assert sum(line.startswith("  log of size (squared error)") for line in lines) == 2


def test_masks_in_training_are_those_that_windows_get():
    keys = window_keys(0, 0, torch.arange(400))
    each = {mode: make_mask(keys, 64, 16, 0.25, mode) for mode in MASKS}
    mix = make_mask(keys, 64, 16, 0.25, "mix")
    found = {mode for mode in MASKS if (each[mode] == mix).flatten(1).all(1).float().mean() > 0.05}
    assert found == trained_on("mix") == {"patch", "span", "tail", "entry"} and trained_on(
        "span64"
    ) == {"span64"}


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
    assert {"skill_ridge", "skill_untrained"} <= {
        r["metric"] for r in rows if r["case"] == "ETH_USD/patch/log_size"
    }
    times = open_book(tmp_path / "book_states" / "ETH_USD").timestamps
    late = np.datetime_as_string(np.asarray(times[400]).astype("datetime64[ns]"), unit="ms")
    assert run_tester(*words, f"--dates=['{late}','2030-01-01']").returncode == 0
    none = run_tester(*words, "--dates=['2030-01-01','2031-01-01']")
    assert (
        none.returncode == 2
        and "has no window in the split 'all'" in none.stderr
        and none.stderr.count("\n") == 1
    )


def test_the_encoder_is_timed_as_it_can_be_run(monkeypatch):
    monkeypatch.delitem(latency.VARIANTS, "compiled")  # takes a minute
    model, price_sizes = lively_encoder(24, 40), moving_book(16)
    found = latency.benchmark(model, price_sizes, 2, ["cpu"])
    cells = {(row["case"], row["metric"]): row["value"] for rows in found for row in rows}
    for variant in ("eager", "torchscript"):
        assert 0 < cells[f"latency/cpu/{variant}", "p50"] <= cells[f"latency/cpu/{variant}", "p99"]
        assert cells[f"latency/cpu/{variant}", "windows_per_second"] > 0
    encode = latency.WindowEncoder(model, "last")
    traced = latency.VARIANTS["torchscript"](encode, *(x[:1] for x in price_sizes))
    with torch.inference_mode():
        torch.testing.assert_close(traced(*price_sizes), encode(*price_sizes))


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
    done = run_tester(
        f"--data_dir={sampled}", f"--model_path={checkpoint}", "--dates=['2026-05-01', 'May']"
    )
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
    selection = inference_testing.select_windows(config, model, meta, books)
    book = books[0]
    tested = selection.tested(book)
    first = tested.min() - 32
    for split in ("train", "validation"):
        for _, ends in selection.to_fit(book, split, 10**6, probe_tasks.HORIZON):
            # window, horizon, embargo
            assert len(ends) and ends.max() + probe_tasks.HORIZON <= first - 32
    assert len(np.intersect1d(tested, window_ends(book.segment_starts, book.rows, 32))) == len(
        tested
    )
    everything = {**config, "split": "all", "fit_data_dir": str(sampled)}
    assert (
        inference_testing.select_windows(everything, model, meta, books).to_fit(book, "train", 8)
        == []
    )
    meta["data"]["books"] = [identity(book)]
    with pytest.raises(InputError, match="BTC_USD was trained on"):
        inference_testing.select_windows(everything, model, meta, books)


def test_fp8_is_equivalent_only_where_the_whole_interval_lies_within_one_percent():
    """Five pairs, mean ratio 0.4 %, standard error 0.1 %: t(4) at 95 % is 2.132 (Student)."""
    ratios = 0.004 + 0.001 * np.sqrt(5) * np.array([-1, -1, 0, 1, 1])
    pairs = [(1 + ratio, 1.0) for ratio in ratios]
    cells = {("A/patch/log_size", "error"): 3.0, ("A/patch/log_size", "blocks"): 7.0}
    line = prove.summarise("A", cells, "2 passed", 0, *prove.compare_losses(pairs))
    assert "+0.40% of the loss, 90 % interval +-0.21%: equivalent" in line and "\n" not in line
    assert "ours 3 (7 blocks of time)" in line and "shared by train and test 0" in line
    wide = prove.compare_losses([(1 + 10 * ratio, 1.0) for ratio in ratios])
    assert "not shown to be equivalent" in prove.summarise("A", cells, "2 passed", 0, *wide)
    assert "not measured" in prove.summarise(
        "A", cells, "2 passed", 0, *prove.compare_losses([(1.0, None)])
    )


def test_the_deviation_over_seeds_stands_beside_the_difference_of_fp8():
    rows = {
        (row["case"], row["metric"]): row["value"]
        for row in prove.loss_rows([(1.1, 1.0), (3.0, 3.0)])
    }
    assert rows["FP8 over bf16", "difference"] == pytest.approx(0.05)
    assert rows["bf16 over seeds", "relative_deviation"] == pytest.approx(np.sqrt(2) / 2)
    assert prove.loss_rows([(1.0, None)]) == []


def test_medians_are_taken_over_the_cases_that_are_tabled():
    values = {
        ("A/patch/mid", "error"): 1.0,
        ("A/patch/mid/balanced", "error"): 2.0,
        ("latency/cpu", "p50"): 3.0,
        ("A/patch/mid", "win_rate_naive"): 0.5,
        ("A/probe/direction", "ours"): 0.6,
    }
    rows = [
        {"case": case, "metric": metric, "value": value} for (case, metric), value in values.items()
    ]
    wanted = [("A/patch/mid", "error"), ("A/probe/direction", "ours")]
    assert prove.collect([rows, rows]) == {key: [values[key]] * 2 for key in wanted}
