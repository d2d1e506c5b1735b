"""The outlook: its targets against loops over single windows, and that training for it moves the encoder's vector."""

import math

import numpy as np
import pytest
import torch
from conftest import metadata
from test_ladder import moving_book

from lob.model.checkpoint import load_model, save_checkpoint
from lob.model.encoder import OUTLOOK_TARGETS, BookEncoder, encoder_config
from lob.model.inputs import build_inputs
from lob.model.masking import window_keys
from lob.training.objective import AHEAD, SCALES, describe, states_ahead
from lob.training.passes import MicroStep, Task
from lob.training.precision import Precision
from lob.training.saving import training_state

STATES, LEVELS = 140, 16


def slowly(ticks: np.ndarray, sizes: np.ndarray) -> list[float]:
    """The targets of one window, (T, L) each, in the order of lob.training.objective.describe."""
    half, coming = LEVELS // 2, min(32, len(ticks) // 2)
    now = len(ticks) - coming - 1
    bid, ask, mid = ticks[:, half - 1], ticks[:, half], (ticks[:, half - 1] + ticks[:, half]) / 2
    bids, asks = sizes[now, half - 1 :: -1], sizes[now, half:]
    level = np.log(sizes[: now + 1]).mean()
    found = [(bids[:n].sum() - asks[:n].sum()) / (bids[:n].sum() + asks[:n].sum()) for n in (1, 3, 10, half)]
    found += [math.log(ask[now] - bid[now])]
    found += [math.log(x) - level for x in (bids[0], asks[0], bids.mean(), asks.mean())]
    still = 0
    while still < now and mid[now - still] == mid[now - still - 1]:
        still += 1
    found += [math.log1p(still), np.log(ask - bid)[: now + 1].mean()]
    for reach in (min(n, now) for n in (5, 20, 80, now)):
        moves = [mid[i] - mid[i - 1] for i in range(now, now - reach, -1)]
        total = mid[now] - mid[now - reach]
        found += [math.copysign(math.log1p(abs(total)), total), math.log1p(math.sqrt(sum(m * m for m in moves))),
                  math.log1p(sum(m != 0 for m in moves))]  # fmt: skip
    ahead = [mid[i] - mid[i - 1] for i in range(now + 1, len(mid))]
    found.append(next((math.copysign(1, m) for m in ahead if m), 0))
    gone = [next((i for i in range(now + 1, len(mid)) if away(i)), len(mid))
            for away in (lambda i: bid[i] < bid[now], lambda i: ask[i] > ask[now])]  # fmt: skip
    found += [float(np.sign(gone[0] - gone[1])), float(any((ask - bid)[now + 1 :] > (ask - bid)[now]))]
    return [value * scale for value, scale in zip(found, SCALES, strict=True)]


@pytest.mark.parametrize("states", [STATES, 32, 4])
def test_targets_are_those_of_loops_over_single_windows(states):
    price_ticks, sizes = moving_book(6, states=states, levels=LEVELS)
    price_ticks[0, 1:] = price_ticks[0, 1]  # a book that stands still
    found = describe(price_ticks, sizes)
    expected = [slowly(*window) for window in zip(price_ticks.double().numpy(), sizes.double().numpy(), strict=True)]
    assert found.shape == (6, OUTLOOK_TARGETS) and found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-4)
    assert states < STATES or (states_ahead(states) == AHEAD and found[:, -2].unique().numel() > 1)


def step_of(outlook: float) -> tuple[MicroStep, tuple]:
    price_ticks, sizes = moving_book(8, states=STATES, levels=LEVELS)
    config = encoder_config("tiny_transformer", depth=LEVELS, temporal_dim=STATES, outlook=outlook > 0)
    torch.manual_seed(0)
    task = Task("mse", "entry", 0.25, outlook=outlook)
    return MicroStep(BookEncoder(config), config, Precision("fp32", "", ""), task), (
        price_ticks,
        sizes,
        window_keys(0, 0, torch.arange(8)),
    )


def test_the_vector_learns_the_outlook_and_the_masked_loss_stays_what_it_was():
    (step, windows), (plain, _) = step_of(0.5), step_of(0.0)
    nominal = 8 * 0.25 * STATES * LEVELS * 2
    before = float(step.outlook_loss(*windows[:2]).detach())
    optimizer = torch.optim.Adam(step.model.parameters(), lr=3e-3)
    assert [float(x) for x in step(*windows, nominal)] == pytest.approx([float(x) for x in plain(*windows, nominal)])
    gradients = [dict(x.model.named_parameters())["layers.0.qkv.weight"].grad for x in (step, plain)]
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm().clamp(min=1e-9)) > 0.1
    for _ in range(20):
        optimizer.step()
        optimizer.zero_grad()
        step(*windows, nominal)
    assert float(step.outlook_loss(*windows[:2]).detach()) < before / 2


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_its_weight_does_not_depend_on_how_many_windows_a_pass_has(size):
    weights = []
    for windows in (8, size):
        step, (price_ticks, sizes, keys) = step_of(0.5)
        for _ in range(24 // windows):
            step(*(x[:1].repeat_interleave(windows, 0) for x in (price_ticks, sizes, keys)), 24.0)
        weights.append(step.model.outlook.bias.grad)
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-8)


def test_what_is_to_be_foretold_is_not_shown():
    step, (price_ticks, sizes, _) = step_of(0.5)
    shown = []
    step.model.encode = lambda tokens: shown.append(tokens) or tokens.new_zeros(8, STATES, 64)
    step.outlook_loss(price_ticks, sizes)
    changed = price_ticks.clone(), sizes.clone()
    changed[0][:, -AHEAD:] += 7
    changed[1][:, -AHEAD:] *= 3
    step.outlook_loss(*changed)
    assert shown[0].equal(shown[1])
    last = build_inputs(price_ticks[:, :-AHEAD], sizes[:, :-AHEAD], None, step.config)[0][:, -1]
    visible = slice(0, 2 * LEVELS, 2)  # prices, which no other state scales
    torch.testing.assert_close(shown[0][:, -1, visible], last[:, visible])


def test_its_head_stays_with_training(tmp_path):
    model = step_of(0.5)[0].model.eval()
    save_checkpoint(tmp_path / "best.safetensors", training_state(model), metadata(model.config))
    loaded, _ = load_model(tmp_path / "best.safetensors")
    assert model.outlook is not None and loaded.outlook is None
    tokens, *_ = build_inputs(*step_of(0.0)[1][:2], None, model.config)
    with torch.inference_mode():
        assert loaded.encode(tokens).equal(model.encode(tokens))
