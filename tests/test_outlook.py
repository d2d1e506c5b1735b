"""The outlook (lob/training/objective.py): its targets beside slow loops, and what it trains."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import metadata
from test_ladder import moving_book

import fp8_ddp_trainer
from fp8_ddp_trainer import Trainer
from lob.model.checkpoint import load_model, save_checkpoint
from lob.model.encoder import OUTLOOK_TARGETS, BookEncoder, encoder_config
from lob.model.inputs import build_inputs
from lob.model.masking import window_keys
from lob.training.objective import (
    AHEAD,
    OUTLOOK_EVERY,
    SCALES,
    outlook_loss,
    outlook_targets,
    states_ahead,
)
from lob.training.precision import Precision
from lob.training.saving import training_state

STATES, LEVELS = 140, 16


def slowly(ticks: np.ndarray, sizes: np.ndarray) -> list[float]:
    """Return the targets of one window, ticks and sizes (T, L), in outlook_targets' order."""
    half, coming = LEVELS // 2, min(32, len(ticks) // 2)
    now = len(ticks) - coming - 1
    bid, ask, mid = ticks[:, half - 1], ticks[:, half], (ticks[:, half - 1] + ticks[:, half]) / 2
    bids, asks = sizes[now, half - 1 :: -1], sizes[now, half:]
    mean = np.log(sizes[: now + 1]).mean()
    found = []
    for count in (1, 3, 10, half):
        total_bid, total_ask = bids[:count].sum(), asks[:count].sum()
        found.append((total_bid - total_ask) / (total_bid + total_ask))
    found += [math.log(ask[now] - bid[now])]
    found += [math.log(x) - mean for x in (bids[0], asks[0], bids.mean(), asks.mean())]
    still = 0
    while still < now and mid[now - still] == mid[now - still - 1]:
        still += 1
    found += [math.log1p(still), np.log(ask - bid)[: now + 1].mean()]
    for reach in (min(n, now) for n in (5, 20, 80, now)):
        moves = [mid[i] - mid[i - 1] for i in range(now, now - reach, -1)]
        total = mid[now] - mid[now - reach]
        found += [
            math.copysign(math.log1p(abs(total)), total),
            math.log1p(math.sqrt(sum(m * m for m in moves))),
            math.log1p(sum(m != 0 for m in moves)),
        ]
    ahead = [mid[i] - mid[i - 1] for i in range(now + 1, len(mid))]
    found.append(next((math.copysign(1, m) for m in ahead if m), 0))
    coming = range(now + 1, len(mid))
    gone_bid = next((i for i in coming if bid[i] < bid[now]), len(mid))
    gone_ask = next((i for i in coming if ask[i] > ask[now]), len(mid))
    found.append(float(np.sign(gone_bid - gone_ask)))
    found.append(float(any((ask - bid)[now + 1 :] > (ask - bid)[now])))
    return [value * scale for value, scale in zip(found, SCALES, strict=True)]


@pytest.mark.parametrize("states", [STATES, 32, 4])
def test_targets_are_those_of_loops_over_single_windows(states):
    price_ticks, sizes = moving_book(6, states=states, levels=LEVELS)
    price_ticks[0, 1:] = price_ticks[0, 1]  # a book that stands still
    found = outlook_targets(price_ticks, sizes)
    windows = zip(price_ticks.double().numpy(), sizes.double().numpy(), strict=True)
    expected = torch.tensor([slowly(*window) for window in windows], dtype=torch.float32)
    assert found.shape == (6, OUTLOOK_TARGETS) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert states < STATES or (states_ahead(states) == AHEAD and found[:, -2].unique().numel() > 1)


def trainer_of(outlook: float, windows_a_step: int = 8) -> tuple[Trainer, tuple]:
    """Return a trainer that has no data but can run micro-steps, and eight windows with keys."""
    price_ticks, sizes = moving_book(8, states=STATES, levels=LEVELS)
    made = object.__new__(Trainer)  # without __init__, which would open data
    made.config = fp8_ddp_trainer.config | {"mask_mode": "entry", "mask_perc": 0.25}
    made.config |= {"outlook": outlook, "mirror": False, "slow": 0.0, "size_noise": 0.0}
    choices = {"depth": LEVELS, "temporal_dim": STATES, "outlook": outlook > 0}
    made.encoder = encoder_config("tiny_transformer", **choices)
    made.precision = Precision("fp32", "", "")
    torch.manual_seed(0)
    made.model = BookEncoder(made.encoder)
    made.sampler = SimpleNamespace(windows_a_step=windows_a_step)
    made.nominal = windows_a_step * 0.25 * STATES * LEVELS * 2
    times = torch.arange(STATES).expand(8, -1) * 10**7
    return made, (price_ticks, sizes, times, window_keys(0, 0, torch.arange(8)))


def error_of(made: Trainer, *windows: torch.Tensor) -> float:
    """Return the mean error of the outlook."""
    error, asked = outlook_loss(made.model, made.precision, *windows)
    return float(error.detach()) / asked


def test_the_vector_learns_the_outlook_and_the_masked_loss_stays_what_it_was():
    (made, windows), (plain, _) = trainer_of(0.5), trainer_of(0.0)
    before = error_of(made, *windows[:3])
    optimizer = torch.optim.Adam(made.model.parameters(), lr=3e-3)
    losses = [[float(x) for x in each.micro_step(*windows)] for each in (made, plain)]
    assert losses[0] == pytest.approx(losses[1])
    with_outlook, without = (each.model.layers[0].qkv.weight.grad for each in (made, plain))
    assert float((with_outlook - without).norm() / without.norm().clamp(min=1e-9)) > 0.1
    for _ in range(20):
        optimizer.step()
        optimizer.zero_grad()
        made.micro_step(*windows)
    assert error_of(made, *windows[:3]) < before / 2


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_its_weight_does_not_depend_on_how_many_windows_a_pass_has(size):
    weights = []
    for windows in (8, size):
        made, given = trainer_of(0.5, windows_a_step=24)
        same = [x[:1].repeat_interleave(windows, 0) for x in given]
        for _ in range(24 // windows):
            made.micro_step(*same)
        weights.append(made.model.outlook.bias.grad)
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-8)


def test_what_is_to_be_foretold_is_not_shown():
    made, (price_ticks, sizes, times, _) = trainer_of(0.5)
    shown = []

    def encode(tokens: torch.Tensor) -> torch.Tensor:
        shown.append(tokens)
        return tokens.new_zeros(len(tokens), STATES, 64)

    made.model.encode = encode
    outlook_loss(made.model, made.precision, price_ticks, sizes, times)
    changed = price_ticks.clone(), sizes.clone(), times
    changed[0][:, -AHEAD:] += 7
    changed[1][:, -AHEAD:] *= 3
    outlook_loss(made.model, made.precision, *changed)
    assert shown[0].equal(shown[1])
    asked = slice(None, None, OUTLOOK_EVERY)
    past = price_ticks[asked, :-AHEAD], sizes[asked, :-AHEAD]
    last = build_inputs(*past, None, made.encoder)[0][:, -1]
    visible = slice(0, 2 * LEVELS, 2)  # prices, which no other state scales
    torch.testing.assert_close(shown[0][:, -1, visible], last[:, visible])


def test_its_head_stays_with_training(tmp_path):
    model = trainer_of(0.5)[0].model.eval()
    save_checkpoint(tmp_path / "best.safetensors", training_state(model), metadata(model.config))
    loaded, _ = load_model(tmp_path / "best.safetensors")
    assert model.outlook is not None and loaded.outlook is None
    tokens, *_ = build_inputs(*trainer_of(0.0)[1][:2], None, model.config)
    with torch.inference_mode():
        assert loaded.encode(tokens).equal(model.encode(tokens))
