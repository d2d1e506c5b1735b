"""Each setting of fp8_ddp_trainer.py by its effect, in this process, and apply_mask."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, refusal
from test_ladder import moving_book
from test_trainer import losses, metrics, weights

import fp8_ddp_trainer
from fp8_ddp_trainer import Trainer, apply_mask, check_config, main
from lob.config import InputError
from lob.model.encoder import PRESETS, BookEncoder, encoder_config
from lob.model.inputs import build_inputs
from lob.model.masking import make_mask, scramble, uniform
from lob.training.distributed import Team
from lob.training.optimisation import FiniteCheck, NonFinite, make_optimizer, one_cycle
from lob.training.precision import Precision
from lob.training.run_folder import new_run
from lob.training.te_layer import plain_state

SMALL = {
    "model_size": "tiny_transformer",
    "depth_dim": 16,
    "temporal_dim": 32,
    "batch_size": 16,
    "accumulation_steps": 2,
    "epochs": 1,
    "log_steps": 1,
    "max_lr": 3e-3,
    "dropout": 0.0,
    "mirror": False,
    "slow": 0.0,
    "size_noise": 0.0,
    "outlook": 0.0,
}


pytestmark = pytest.mark.usefixtures("undrawn")


def settings(data: Path, runs: Path, **changes) -> dict:
    """Return the trainer's config for a small run."""
    folders = {"data_dir": str(data), "runs_dir": str(runs)}
    return {**fp8_ddp_trainer.config, **SMALL, **folders, **changes}


def train(data: Path, runs: Path, **changes) -> Path:
    """Train in this process; return the run's folder."""
    config = settings(data, runs, **changes)
    folder = new_run(config["runs_dir"], config["model_name"])
    assert main(config) == 0
    return folder


def trainer(data: Path, runs: Path, **changes) -> Trainer:
    """Return a trainer that has not yet taken a step."""
    config = settings(data, runs, **changes)
    return Trainer(config, Team(0, 1, torch.device("cpu")), runs / "run")


@pytest.mark.parametrize("fill", ["none", "linear", "ladder"])
def test_apply_mask_hides_a_share_and_marks_it(fill):
    """A hidden value is 0 beside a mask bit of 1, a visible one is its target.

    Nothing else of what the network sees depends on hidden values.
    """
    price_ticks, sizes = moving_book(8, states=64, levels=16)
    encoder = encoder_config("tiny_transformer", depth=16, temporal_dim=64, fill=fill)
    keys = torch.arange(8)
    tokens, base, values, mask = apply_mask(price_ticks, sizes, keys, 0.4, "entry", encoder)
    assert mask.dtype == torch.bool and mask.shape == values.shape == base.shape == (8, 64, 16, 2)
    assert float(mask.float().mean()) == pytest.approx(0.4, abs=0.01)
    seen, bits = tokens[..., :32].view_as(values), tokens[..., 32:64].view_as(values)
    assert torch.equal(bits.bool(), mask)
    assert (seen[mask] == 0).all() and torch.equal(seen[~mask], values[~mask])
    if fill != "none":
        torch.testing.assert_close(base[~mask], values[~mask], rtol=1e-5, atol=1e-6)
    others = price_ticks + 3 * mask[..., 0], sizes * torch.where(mask[..., 1], 7.0, 1.0)
    again = apply_mask(*others, keys, 0.4, "entry", encoder)
    assert torch.equal(again[0], tokens)
    assert torch.equal(again[1], base)
    assert torch.equal(again[3], mask)
    spans = [apply_mask(price_ticks, sizes, keys, 0.25, "span", encoder)[3] for _ in range(2)]
    assert torch.equal(*spans) and (spans[0].flatten(2).float().std(dim=2) == 0).all()


def test_an_edited_apply_mask_changes_what_is_trained(sampled, tmp_path):
    """The function is edited in a copy of the script, as users of the published reference do it.

    Here the edited one hides the size of the best ask.
    """
    source = (ROOT / "fp8_ddp_trainer.py").read_text()
    line = "    mask = make_mask(keys, states, levels, mask_percentage, mask_mode)\n"
    edited = (
        "    shape = (len(keys), states, levels, 2)\n"
        "    mask = torch.zeros(shape, dtype=torch.bool, device=keys.device)\n"
        "    mask[:, :, levels // 2, 1] = True\n"
    )
    assert source.count(line) == 1
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "lob").symlink_to(ROOT / "lob")
    (copy / "fp8_ddp_trainer.py").write_text(source.replace(line, edited))
    words = [f"--{key}={value}" for key, value in SMALL.items()]
    words += [f"--data_dir={sampled}", f"--runs_dir={tmp_path / 'runs'}"]
    words += ["--loss=mae", "--fill=none"]
    command = [sys.executable, "fp8_ddp_trainer.py", *words]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "pretrained_ddp"
    before = float(metrics(run, "validation")[0]["validation_loss"])
    made = trainer(sampled, tmp_path, loss="mae", fill="none")
    error, count = 0.0, 0
    for price_ticks, sizes, *_ in made.passes.load(made.sampler.held_out(1, 16)):
        mask = torch.zeros(*sizes.shape, 2, dtype=torch.bool)
        mask[:, :, 8, 1] = True
        tokens, base, values, _ = build_inputs(price_ticks, sizes, mask, made.encoder)
        with torch.inference_mode():
            error += float((made.model.eval()(tokens, base) - values)[mask].abs().double().sum())
        count += int(mask.sum())
    assert before == pytest.approx(error / count, rel=1e-5)


LOSS = {  # of the difference between prediction and target; torch's defaults: delta = beta = 1
    "mse": lambda e: e**2,
    "mae": abs,
    "huber": lambda e: np.where(abs(e) < 1, e**2 / 2, abs(e) - 0.5),
    "smoothl1": lambda e: np.where(abs(e) < 1, e**2 / 2, abs(e) - 0.5),
}


@pytest.mark.parametrize("loss", LOSS)
def test_losses_are_means_over_hidden_values(sampled, tmp_path, loss):
    """Loss and gradient of the head's bias are compared with those of predictions and masks."""
    made = trainer(sampled, tmp_path, loss=loss, fill="none")
    batch = next(made.sampler.training(0, 0, passes=2))
    (windows,) = made.passes.load([batch])
    predicted = made.predict(*windows)
    prediction, values, mask, _ = (t.detach().numpy() for t in predicted)
    found = made.passes.run(*next(made.passes.windows([batch]))).numpy()
    error = (prediction - values).astype(np.float64)
    np.testing.assert_allclose(found, [LOSS[loss](error)[mask].sum(), mask.sum()], rtol=1e-5)
    slope = (LOSS[loss](error + 1e-5) - LOSS[loss](error - 1e-5)) / 2e-5
    expected = (slope * mask).sum(axis=(0, 1)).ravel() / made.nominal
    np.testing.assert_allclose(made.model.head.bias.grad.numpy(), expected, rtol=1e-3, atol=1e-6)


def test_validation_is_scored_beside_interpolation_and_its_waiting_is_not_counted(
    sampled, tmp_path
):
    made = trainer(sampled, tmp_path)
    sums, count = np.zeros(2), 0
    for windows in made.passes.load(made.sampler.held_out(1, 16)):
        prediction, values, mask, _ = (t.detach().numpy() for t in made.predict(*windows))
        line = np.empty(values.shape)
        for window, level, field in np.ndindex(len(values), *values.shape[2:]):
            truth, hidden = values[window, :, level, field], mask[window, :, level, field]
            known = np.flatnonzero(~hidden)
            line[window, :, level, field] = np.interp(range(32), known, truth[known])
        for number, answer in enumerate((prediction, line)):
            sums[number] += ((answer - values)[mask].astype(np.float64) ** 2).sum()
        count += mask.sum()
    waited = made.passes.store.wait_seconds
    scores = made.evaluate(1)
    found = [scores.loss("validation"), scores.loss("linear")]
    assert found == pytest.approx(list(sums / count), rel=1e-4)
    assert made.passes.store.wait_seconds == waited > 0


@pytest.mark.parametrize("fill", ["none", "linear", "ladder"])
def test_losses_are_split_by_field_and_by_the_mask_that_a_window_got(sampled, tmp_path, fill):
    made = trainer(sampled, tmp_path, fill=fill, mask_mode="mix")
    scores = made.evaluate(1)
    squares: dict[str, list[np.ndarray]] = {}
    for price_ticks, sizes, _, keys in made.passes.load(made.sampler.held_out(1, 16)):
        encoder = replace(made.encoder, fill="ladder")
        choice = uniform(scramble(keys), 1)[:, 0].numpy()
        names = np.select([choice < 0.4375, choice < 0.75, choice < 0.9375], [5, 3, 6], 0)
        for number, name in enumerate(names):
            mode = ("entry", "", "", "span", "", "patch", "tail")[name]
            mask = make_mask(keys[[number]], 32, 16, 0.25, mode)
            only = price_ticks[[number]], sizes[[number]], mask
            _, ladder, values, _ = build_inputs(*only, encoder)
            square = ((ladder - values) ** 2).numpy()
            hidden = mask.numpy()
            for part, field in (("price", 0), ("size", 1)):
                squares.setdefault(part, []).append(square[..., field][hidden[..., field]])
            for part in ("all", mode):
                squares.setdefault(part, []).append(square[hidden])
    assert scores.parts() == ["price", "size", "entry", "span", "patch", "tail"]
    for part, parts in squares.items():
        mean = np.concatenate(parts).astype(np.float64).mean()
        assert scores.loss("ladder", part) == pytest.approx(mean, rel=1e-4), part
        if fill == "ladder":  # the network adds nothing yet
            assert scores.loss("validation", part) == pytest.approx(mean, rel=1e-4), part
    assert scores.loss("linear", "level") == 0


def test_windows_that_an_own_mask_hides_count_in_no_mask_of_the_house(
    sampled, tmp_path, monkeypatch
):
    def hide_best(keys, states, levels, *_):
        mask = torch.zeros(len(keys), states, levels, 2, dtype=torch.bool)
        mask[:, 5:9, levels // 2] = True
        return mask

    monkeypatch.setattr(fp8_ddp_trainer, "make_mask", hide_best)
    scores = trainer(sampled, tmp_path, mask_mode="mix").evaluate(1)
    assert scores.parts() == ["price", "size"] and np.isfinite(scores.loss())


def test_accumulation_takes_the_step_of_one_large_batch(sampled, tmp_path):
    """Two micro-steps of 16 windows take the step of one of 32."""
    runs = [
        train(sampled, tmp_path, batch_size=size, accumulation_steps=count)
        for size, count in ((16, 2), (32, 1))
    ]
    np.testing.assert_allclose(losses(runs[0]), losses(runs[1]), rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_optimizers_take_the_published_steps(name):
    """Adam (Kingma and Ba 2015), AdamW (Loshchilov and Hutter 2019), SGD with momentum 0.9."""
    torch.manual_seed(0)
    model, rng, lr = torch.nn.Linear(3, 1), np.random.default_rng(0), 0.05
    optimizer = make_optimizer(name, model, lr, weight_decay=0.04)
    weight = model.weight.detach().numpy().astype(np.float64)
    first = second = np.zeros_like(weight)
    for step in range(1, 6):
        gradient = rng.normal(size=weight.shape)
        model.weight.grad = torch.tensor(gradient, dtype=torch.float32)
        model.bias.grad = torch.zeros(1)
        optimizer.step()
        if name == "sgd":
            first = 0.9 * first + gradient
            weight = weight - lr * first
        else:
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            mean, square = first / (1 - 0.9**step), second / (1 - 0.999**step)
            weight = weight * (1 - lr * 0.04 * (name == "adamw"))
            weight = weight - lr * mean / (np.sqrt(square) + 1e-8)
        np.testing.assert_allclose(model.weight.detach().numpy(), weight, rtol=1e-5, atol=1e-7)


def test_the_optimizer_named_is_the_one_that_steps(sampled, tmp_path):
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    for name, kind in kinds.items():
        assert type(trainer(sampled, tmp_path, optimizer=name).optimizer) is kind


@pytest.mark.parametrize("steps", [10, 97, 1000])
def test_onecycle_is_torchs(steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for step in range(steps):
        expected = schedule.get_last_lr()[0]
        assert one_cycle(step, steps, 3e-3) == pytest.approx(expected, rel=1e-9, abs=1e-15)
        optimizer.step()
        schedule.step()


def test_a_step_moves_the_weights_by_the_clipped_gradient(sampled, tmp_path):
    """Plain gradient descent: the first step has the length lr x min(norm, max_grad_norm)."""
    changes = {"optimizer": "sgd", "use_scheduler": False, "lr": 0.5, "batch_size": 300}
    begin = plain_state(trainer(sampled, tmp_path, **changes).model)
    for limit in (1e-4, 1e3):
        run = train(sampled, tmp_path, max_grad_norm=limit, **changes)
        assert len(losses(run)) == 1
        norm, end = float(metrics(run, "step")[0]["gradient_norm"]), weights(run)
        changed = [end[f"model.{name}"] - tensor for name, tensor in begin.items()]
        moved = sum(float(change.double().square().sum()) for change in changed)
        assert 1e-3 < norm < 1e2
        assert moved**0.5 == pytest.approx(0.5 * min(norm, limit), rel=1e-3)


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf"))])
def test_neither_loss_nor_gradient_may_be_infinite(loss, norm):
    check = FiniteCheck(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), torch.device("cpu"))
    assert check.watch(*torch.tensor([1.0, 1.0, 1.0]), (0, 0, 1))  # a rank was asked to stop
    with pytest.raises(NonFinite, match="step 7"):
        check.watch(*torch.tensor([loss, norm, 0.0]), (0, 6, 7))


def test_a_mask_that_hides_nothing_trains_nothing(sampled, tmp_path):
    (epoch,) = metrics(train(sampled, tmp_path, mask_perc=1e-12), "epoch")
    assert float(epoch["train_loss"]) == float(epoch["validation_loss"]) == 0


def test_presets_are_those_that_users_know():
    shape = ("layers", "width", "ffn_width", "heads")
    shapes = {name: tuple(preset[key] for key in shape) for name, preset in PRESETS.items()}
    assert shapes["deep_narrow_transformer"] == (40, 192, 1536, 8)
    assert shapes["wide_transformer"] == (12, 2048, 8192, 16)
    counts = {}
    with torch.device("meta"):
        for name in PRESETS:
            parameters = BookEncoder(encoder_config(name)).parameters()
            counts[name] = sum(parameter.numel() for parameter in parameters)
    assert 29e6 < counts["deep_narrow_transformer"] < 31e6
    assert counts["tiny_transformer"] < counts["deep_narrow_transformer"]
    assert counts["deep_narrow_transformer"] < counts["medium_transformer"]
    assert counts["medium_transformer"] < counts["wide_transformer"]


def test_settings_reach_the_model_and_the_data(sampled, tmp_path):
    changes = {
        "dropout": 0.2,
        "causal": True,
        "fill": "none",
        "normalization": "minmax",
        "num_workers": 2,
        "model_size": "tiny_transformer",
        "lr": 0.7,
    }
    made = trainer(sampled, tmp_path, **changes)
    used = made.model.config
    assert (used.dropout, used.causal) == (0.2, True)
    assert (used.fill, used.normalization) == ("none", "minmax")
    assert made.model.layers[0].dropout == 0.2 and made.optimizer.param_groups[0]["lr"] == 0.7
    assert made.passes.store.num_workers == 2
    assert made.sampler.windows_a_step == 32 and made.passes_a_step == 2 and made.passes.size == 16


def test_masks_follow_mode_share_and_seed(sampled, tmp_path):
    found = {}
    tasks = [(0, "entry", 0.25), (1, "entry", 0.25), (0, "tail", 0.25), (0, "entry", 0.6)]
    for seed, mode, share in tasks:
        made = trainer(sampled, tmp_path, seed=seed, mask_mode=mode, mask_perc=share)
        (windows,) = made.passes.load(made.sampler.held_out(1, 64)[:1])
        mask = made.predict(*windows)[2]
        assert float(mask.float().mean()) == pytest.approx(share, abs=0.01)
        found[seed, mode, share] = mask
    assert not torch.equal(found[0, "entry", 0.25], found[1, "entry", 0.25])
    tail = found[0, "tail", 0.25]
    assert tail[:, -8:].all() and not tail[:, :-8].any()


def test_seeds_give_other_weights_and_orders(sampled, tmp_path):
    first, same, other = (trainer(sampled, tmp_path, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.model.embed.weight, same.model.embed.weight)
    assert not torch.equal(first.model.embed.weight, other.model.embed.weight)
    orders = [made.sampler.draw_order(0)[0] for made in (first, same, other)]
    assert np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], orders[2])
    assert not np.array_equal(orders[0], first.sampler.draw_order(1)[0])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", "0"),
        ("mask_perc", "1.0"),
        ("lr_decay_factor", "1.0"),
        ("dropout", "1.0"),
        ("dropout", "nan"),
        ("max_lr", "1e999"),
        ("lr", "0.0"),
        ("max_gpus", "0"),
        ("checkpoint_minutes", "-1.0"),
        ("slow", "1.1"),
        ("max_grad_norm", "0.0"),
        ("seed", "-1"),
        ("temporal_dim", "3"),
    ],
)
def test_impossible_values_are_refused_by_name(key, value):
    assert f"{key} = " in refusal("fp8_ddp_trainer.py", f"--{key}={value}")


def test_an_unknown_model_is_refused_by_name():
    with pytest.raises(InputError, match="model_size"):
        check_config({**fp8_ddp_trainer.config, "model_size": "huge"})


def test_a_resumed_run_keeps_its_recipe(sampled, tmp_path, monkeypatch):
    """The checkpoint names the recipe, whatever 'auto' would take on this machine."""
    made = trainer(sampled, tmp_path)
    assert made.saver.facts["fp8_recipe"] == "auto"  # a CPU chose none
    asked = []

    def choose(precision, recipe, *_):
        asked.append(recipe)
        return Precision("fp32", "", "")

    monkeypatch.setattr(fp8_ddp_trainer, "choose_precision", choose)
    monkeypatch.setattr(
        fp8_ddp_trainer, "load_newest", lambda *_: (None, {}, {"fp8_recipe": "delayed"})
    )
    again = trainer(sampled, tmp_path)
    assert asked == ["delayed"] and again.saver.facts["fp8_recipe"] == "delayed"
