"""The convolutional stem and decoder: no leaks, the ladder's prices stay, FLOPs are counted."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_ladder import moving_book
from torch.utils.flop_counter import FlopCounterMode

from lob.config import InputError
from lob.model.checkpoint import load_model
from lob.model.embedding import Reconstruction, WindowEncoder
from lob.model.encoder import (
    BookEncoder,
    count_parameters,
    doubt,
    encoder_config,
    flops_per_window,
)
from lob.model.inputs import build_inputs
from lob.model.ladder import find_ladder
from lob.model.masking import MASKS, make_mask, window_keys
from lob.training.te_layer import load_plain_state, plain_state

STATES, LEVELS = 40, 24
SMALL = {
    "depth": LEVELS,
    "temporal_dim": STATES,
    "width": 32,
    "heads": 2,
    "layers": 2,
    "ffn_width": 64,
    "cell_width": 8,
    "fill": "ladder",
}


def small(**choices):
    """Return the config of a small encoder with a convolutional stem."""
    return encoder_config("cell_transformer", **{**SMALL, **choices})


def lively(config):
    """Return a network without the zeros that a new one begins with."""
    torch.manual_seed(0)
    model = BookEncoder(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def hidden_windows(mode):
    price_ticks, sizes = moving_book()
    keys = window_keys(0, 0, torch.arange(len(sizes)))
    return price_ticks, sizes, make_mask(keys, STATES, LEVELS, 0.25, mode)


@pytest.mark.parametrize("scheme", ["book", "minmax"])
@pytest.mark.parametrize("mode", MASKS)
def test_hidden_values_change_no_prediction(mode, scheme):
    price_ticks, sizes, mask = hidden_windows(mode)
    config = small(normalization=scheme)
    model = lively(config)
    poisoned = price_ticks.masked_fill(mask[..., 0], 123), sizes.masked_fill(mask[..., 1], 1e9)
    with torch.inference_mode():
        expected = model(*build_inputs(price_ticks, sizes, mask, config)[:2])
        found = model(*build_inputs(*poisoned, mask, config)[:2])
    assert found.isfinite().all() and found.equal(expected)


def test_no_mask_is_a_mask_that_hides_nothing():
    price_ticks, sizes, mask = hidden_windows("entry")
    tokens, *_ = build_inputs(price_ticks, sizes, None, small())
    expected, *_ = build_inputs(price_ticks, sizes, torch.zeros_like(mask), small())
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("causal", "same"), [(True, True), (False, False)])
def test_causal_embeddings_do_not_see_later_states(causal, same):
    price_ticks, sizes = moving_book()
    changed = price_ticks.clone(), sizes.clone()
    changed[0][:, 30:] += 5
    changed[1][:, 30:] *= 3
    config = small(causal=causal)
    model = lively(config)
    with torch.inference_mode():
        before = model.encode(build_inputs(price_ticks, sizes, None, config)[0])[:, :30]
        after = model.encode(build_inputs(*changed, None, config)[0])[:, :30]
    assert torch.allclose(before, after, rtol=0, atol=1e-5) is same


def test_training_starts_at_the_ladder_and_its_prices_stay():
    price_ticks, sizes, mask = hidden_windows("patch")
    tokens, base, *_ = build_inputs(price_ticks, sizes, mask, small())
    assert BookEncoder(small())(tokens, base).equal(base)
    with torch.inference_mode():
        change = lively(small())(tokens, base) - base
    assert (change[..., 0] == 0).all() and (change[..., 1] != 0)[mask[..., 1]].all()


def test_cells_hold_the_sizes_last_and_next_seen_at_their_price():
    price_ticks = torch.tensor([[[10, 20, 30, 40], [10, 21, 30, 40], [10, 20, 30, 40]]])
    sizes = torch.tensor([[[1.0, 2.0, 4.0, 8.0], [1.0, 16.0, 4.0, 8.0], [1.0, 32.0, 64.0, 8.0]]])
    mask = torch.zeros(1, 3, 4, 2, dtype=torch.bool)
    mask[0, 1, 2, 1] = True  # the size of price 30 in the middle: 4 before it, 64 after it
    config = small(depth=4, temporal_dim=3)
    cells, base, values, _ = build_inputs(price_ticks, sizes, mask, config)
    left, right = cells[..., 8] + base[..., 1], cells[..., 9] + base[..., 1]
    assert left[0, 1, 2] == values[0, 0, 2, 1]
    assert right[0, 1, 2] == pytest.approx(float(values[0, 2, 2, 1]))
    assert left[0, 2, 1] == pytest.approx(float(values[0, 0, 1, 1]))  # price 20, two states ago
    assert cells[0, 1, 1, 8:12].abs().sum() == 0  # price 21 is there once


@pytest.mark.parametrize("fill", ["ladder", "linear"])
@pytest.mark.parametrize("mode", ["patch", "span", "level"])
def test_a_causal_encoder_corrects_the_same_fill(mode, fill):
    """Each state's sizes are less a mean of its own; a fill joins those of several states."""
    price_ticks, sizes, mask = hidden_windows(mode)
    prices, amounts = [], []
    for causal in (False, True):
        config = encoder_config("tiny_transformer", fill=fill, causal=causal)
        _, base, values, parameters = build_inputs(price_ticks, sizes, mask, config)
        assert base[~mask].equal(values[~mask]) or not causal
        prices.append(base[..., 0])
        amounts.append(2 * base[..., 1] + parameters["size_centre"])
    assert prices[0].equal(prices[1])
    torch.testing.assert_close(*amounts, rtol=0, atol=1e-5)


def expected_doubt(log_sizes, values, shown, price, price_known, causal):
    """Return `doubt` of one window, float64 (T, L), in plain loops.

    log_sizes: divided by 2; values: less their means too, as the network takes them; shown,
    price_known: bool. All are (T, L).
    """
    states, levels = shown.shape
    steps = np.full((states, levels), np.inf)
    changes, passed = 0.0, 0
    for state, level in np.ndindex(states, levels):
        if not price_known[state, level]:
            continue
        same = (price == price[state, level]) & price_known & shown
        same[state] = False
        at, at_level = np.nonzero(same[:state] if causal else same)
        if not len(at):
            continue
        steps[state, level] = np.abs(at - state).min()
        earlier = np.flatnonzero(at < state)
        pick = earlier[-1] if len(earlier) else 0
        if shown[state, level]:
            changes += (log_sizes[at[pick], at_level[pick]] - log_sizes[state, level]) ** 2
            passed += abs(at[pick] - state)
    both = shown[1:] & shown[:-1]
    at_level = ((values[1:] - values[:-1])[both] ** 2).mean()
    found = np.ones((states, levels))
    for state, level in np.ndindex(states, levels):
        seen = np.flatnonzero(shown[:, level])
        if not len(seen):
            continue
        error = at_level * np.abs(seen - state).min()
        if np.isfinite(steps[state, level]):
            error = changes / passed * steps[state, level]
        found[state, level] = error / (error + 0.5)
    return found


@pytest.mark.parametrize("kind", ["entry", "span"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_correction_counts_as_much_as_the_fill_is_expected_to_be_wrong(causal, kind):
    price_ticks, sizes, mask = hidden_windows(kind)
    tokens, _, values, _ = build_inputs(price_ticks, sizes, mask, small(causal=causal))
    found = doubt(tokens)[..., 0].numpy()
    ladder = find_ladder(price_ticks, mask)
    shown = ~mask[..., 1].numpy()
    spread = False
    for window in range(len(found)):
        expected = expected_doubt(
            np.log(sizes[window].double().numpy()) / 2,
            values[window, ..., 1].double().numpy(),
            shown[window],
            ladder.price[window].numpy(),
            ladder.price_known[window].numpy(),
            causal,
        )
        hidden = ~shown[window]
        np.testing.assert_allclose(found[window][hidden], expected[hidden], rtol=1e-3, atol=1e-6)
        spread |= len(np.unique(expected[hidden])) > 2
    assert spread


def test_a_checkpoint_with_another_rule_of_correction_is_refused(tmp_path):
    for file in (ROOT / "pretrained" / "small_cell").iterdir():
        shutil.copy(file, tmp_path)
    settings, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    meta = json.loads(settings.read_text())
    assert load_model(weights)[0].config.doubt == meta["encoder"].pop("doubt") == "change"
    settings.write_text(json.dumps(meta))
    with pytest.raises(InputError, match=r"no encoder of this version .doubt = 'distance'"):
        load_model(weights)


def test_a_book_that_stands_still_is_left_as_the_ladder_fills_it():
    price_ticks, sizes, mask = hidden_windows("tail")
    still = price_ticks[:, :1].expand_as(price_ticks), sizes[:, :1].expand_as(sizes)
    tokens, base, _, _ = build_inputs(*still, mask, small())
    assert (lively(small())(tokens, base) == base).all()


@pytest.mark.parametrize("preset", ["cell_transformer", "deep_narrow_transformer"])
def test_flops_are_those_that_torch_counts(preset):
    config = encoder_config(preset, fill="ladder")
    with torch.device("meta"):
        model = BookEncoder(config)
    assert count_parameters(config) == sum(parameter.numel() for parameter in model.parameters())
    tokens = torch.empty(build_inputs_shape(config), device="meta")
    with FlopCounterMode(display=False) as counter:
        model(tokens, torch.empty(1, config.temporal_dim, config.depth, 2, device="meta"))
    assert flops_per_window(config) == pytest.approx(3 * counter.get_total_flops(), rel=0.02)


def build_inputs_shape(config):
    last = (config.depth, 16) if config.cell_width else (config.input_width,)
    return (1, config.temporal_dim, *last)


def test_weights_go_there_and_back_and_the_network_can_be_scripted_and_traced():
    price_ticks, sizes, mask = hidden_windows("patch")
    model, other = lively(small()), BookEncoder(small()).eval()
    load_plain_state(other, plain_state(model))
    tokens, base, *_ = build_inputs(price_ticks, sizes, mask, small())
    with torch.inference_mode():
        expected = model(tokens, base)
        assert other(tokens, base).equal(expected)
        assert torch.jit.script(model)(tokens, base).equal(expected)
        for module, inputs in (
            (WindowEncoder(model, "last"), (price_ticks, sizes)),
            (Reconstruction(model), (price_ticks, sizes, mask)),
        ):
            traced = torch.jit.trace(module, tuple(x[:1] for x in inputs), check_trace=False)
            torch.testing.assert_close(traced(*inputs), module(*inputs))
