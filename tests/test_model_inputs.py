"""Masks, normalisation and the encoder's inputs: shares, invertibility, nothing hidden leaks in."""

import numpy as np
import pytest
import torch
from torch import nn

from lob.model import masking
from lob.model.embedding import Reconstruction
from lob.model.encoder import (
    BookEncoder,
    EncoderLayer,
    count_parameters,
    encoder_config,
    rotary_angles,
)
from lob.model.inputs import build_inputs
from lob.model.masking import MASKS, MODES, make_mask, name_masks, window_keys
from lob.model.normalisation import (
    SCHEMES,
    first_known_price,
    fit,
    interpolate_time,
    invert,
    state_mids,
    transform,
)


def windows(batch=3, states=64, levels=16, seed=0):
    """Return windows of a book that moves as a whole."""
    generator = torch.Generator().manual_seed(seed)
    drift = torch.randint(-1, 2, (batch, states, 1), generator=generator).cumsum(1)
    shape = torch.randint(1, 40, (batch, 1, levels), generator=generator).cumsum(2)
    price_ticks = 7_800_000 + drift + shape
    sizes = torch.rand(batch, states, levels, generator=generator).exp() - 0.99
    return price_ticks.to(torch.int32), sizes


def keys(count, seed=0, epoch=0):
    return window_keys(seed, epoch, torch.arange(count))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("share", [0.25, 0.4])
def test_masks_hit_their_share(mode, share):
    """To 0.5 % of it, with so many windows that this is four standard errors of their mean."""
    parts = keys(4_000 if mode == "entry" else 64_000).split(4_000)
    masks = (make_mask(part, 64, 8, share, mode).to(torch.uint8) for part in parts)
    each = torch.cat([mask.sum(dim=(1, 2, 3)) for mask in masks])
    each = each.double() / (64 * 8 * 2)
    assert abs(each.mean() - share) < 0.005 * share
    assert 4 * each.std() / len(each) ** 0.5 < 0.005 * share


def test_masks_have_the_shapes_of_their_names():
    mask = {mode: make_mask(keys(200), 256, 96, 0.25, mode) for mode in MASKS}
    assert mask["level"].any(1).sum((1, 2)).eq(48).all()
    assert mask["level"].all(1).equal(mask["level"].any(1))
    for mode in ("span", "span64", "tail"):
        assert mask[mode].any(3).any(2).equal(mask[mode].all(3).all(2))
    spans = mask["span"][:, :, 0, 0].reshape(200, 16, 16)
    assert spans.any(2).equal(spans.all(2))
    assert spans.any(2).sum(1).eq(4).all()
    runs = mask["span64"][:, :, 0, 0].int()
    assert runs.sum(1).eq(64).all()
    assert (runs.diff(dim=1).abs().sum(1) <= 2).all()
    assert mask["tail"][:, 192:].all()
    assert not mask["tail"][:, :192].any()
    cells = mask["patch"][..., 0].reshape(200, 16, 16, 12, 8).transpose(2, 3)
    assert cells.any((3, 4)).equal(cells.all(4).all(3))
    assert cells[..., 0, 0].sum((1, 2)).eq(48).all()
    assert mask["patch"][..., 0].equal(mask["patch"][..., 1])


def test_a_span_of_64_begins_anywhere():
    begins = make_mask(keys(7000), 8, 1, 0.25, "span64")[:, :, 0, 0].int().argmax(dim=1)
    four_standard_errors = 120
    counts = begins.bincount(minlength=8)
    np.testing.assert_allclose(counts, [1000] * 7 + [0], atol=four_standard_errors)


def test_which_mask_a_mixed_window_gets_tells_nothing_of_the_mask():
    mix, patch = (make_mask(keys(8000), 32, 16, 0.25, mode) for mode in ("mix", "patch"))
    chosen = patch[(mix == patch).flatten(1).all(dim=1)]
    assert len(chosen) == pytest.approx(8000 * 7 / 16, rel=0.06)
    np.testing.assert_allclose(chosen[:, ::16, ::8, 0].float().mean(dim=0), 0.25, atol=0.03)


@pytest.mark.parametrize("order", [["entry", "patch", "span", "tail"], ["tail", "span", "patch"]])
def test_a_span_that_hides_what_a_tail_hides_is_named_a_tail(monkeypatch, order):
    keys = window_keys(0, 0, torch.arange(64))
    spans, tails = (make_mask(keys, 64, 24, 0.25, mode) for mode in ("span", "tail"))
    alike = (spans == tails).flatten(1).all(1)
    assert alike.any() and not alike.all()
    monkeypatch.setattr(masking, "trained_on", lambda mode: order)  # a set, in any order
    found = name_masks(spans, keys, 0.25, "mix")
    expected = torch.where(alike, MASKS.index("tail"), MASKS.index("span"))
    assert torch.equal(found, expected)


def test_a_mask_depends_on_seed_epoch_and_sample_alone():
    together = make_mask(window_keys(3, 5, torch.arange(10)), 32, 16, 0.25, "entry")
    alone = make_mask(window_keys(3, 5, torch.tensor([7])), 32, 16, 0.25, "entry")
    assert together[7].equal(alone[0])
    for seed, epoch in ((4, 5), (3, 6)):
        other = make_mask(window_keys(seed, epoch, torch.arange(10)), 32, 16, 0.25, "entry")
        agreement = (other == together).float().mean().item()
        assert agreement == pytest.approx(0.25**2 + 0.75**2, abs=0.02)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("mode", MASKS)
def test_normalisation_is_undone_exactly_enough(scheme, mode):
    price_ticks, sizes = windows()
    mask = make_mask(keys(3), 64, 16, 0.25, mode)
    parameters = fit(price_ticks, sizes, mask, scheme)
    prices, found = invert(transform(price_ticks, sizes, parameters, scheme), parameters, scheme)
    assert (prices - price_ticks).abs().max() < 0.05
    np.testing.assert_allclose(found, sizes, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("fill", ["none", "linear", "ladder"])
@pytest.mark.parametrize("mode", MASKS)
def test_hidden_values_change_nothing_the_encoder_sees(scheme, fill, mode):
    price_ticks, sizes = windows()
    mask = make_mask(keys(3), 64, 16, 0.25, mode)
    config = encoder_config(
        "tiny_transformer", depth=16, temporal_dim=64, normalization=scheme, fill=fill
    )
    poisoned = price_ticks.masked_fill(mask[..., 0], 123), sizes.masked_fill(mask[..., 1], 1e9)
    tokens, base, *_ = build_inputs(price_ticks, sizes, mask, config)
    found_tokens, found_base, *_ = build_inputs(*poisoned, mask, config)
    assert tokens.equal(found_tokens)
    assert base.equal(found_base)
    assert torch.isfinite(tokens).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("fill", ["none", "linear", "ladder"])
def test_a_window_that_shows_no_price_is_reconstructed_without_one(scheme, fill):
    price_ticks, sizes = windows()
    mask = make_mask(keys(3), 64, 16, 0.25, "entry")
    mask[1, ..., 0] = True
    config = encoder_config(
        "tiny_transformer", depth=16, temporal_dim=64, normalization=scheme, fill=fill
    )
    model = Reconstruction(BookEncoder(config).eval())
    poisoned_ticks = price_ticks.masked_fill(mask[..., 0], 123)
    with torch.inference_mode():
        first, second = (model(ticks, sizes, mask) for ticks in (price_ticks, poisoned_ticks))
        tokens, base, _, parameters = build_inputs(price_ticks, sizes, mask, config)
        plain = invert(model.encoder(tokens, base), parameters, scheme)
    for found, poisoned, inverted in zip(first, second, plain, strict=True):
        assert torch.isfinite(found).all() and found.equal(poisoned)
        assert found[[0, 2]].equal(inverted[[0, 2]])


def test_a_hidden_value_differs_from_a_true_zero():
    price_ticks, sizes = windows(1)
    config = encoder_config(
        "tiny_transformer", depth=16, temporal_dim=64, fill="none", normalization="minmax"
    )
    visible = torch.zeros(1, 64, 16, 2, dtype=torch.bool)
    hidden = torch.zeros(1, 64, 16, 2, dtype=torch.bool)
    _, _, values, _ = build_inputs(price_ticks, sizes, visible, config)
    state, level = (values[0, :, :, 1] == 0).nonzero()[0].tolist()  # of the least size
    hidden[0, state, level, 1] = True
    shown = build_inputs(price_ticks, sizes, visible, config)[0][0, state]
    not_shown = build_inputs(price_ticks, sizes, hidden, config)[0][0, state]
    assert not torch.equal(shown, not_shown)


def test_interpolation_agrees_with_numpy():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(4, 50, 3, generator=generator, dtype=torch.float64)
    known = torch.rand(4, 50, 3, generator=generator) < 0.3
    found = interpolate_time(values, known)
    for b in range(4):
        for column in range(3):
            at = np.flatnonzero(known[b, :, column])
            expected = np.interp(np.arange(50), at, values[b, at, column])
            np.testing.assert_allclose(found[b, :, column], expected, atol=1e-12)


@pytest.mark.parametrize("share", [0.5, 0.2, 0.1])
def test_mids_and_first_prices_are_those_of_a_slow_reading(share):
    generator = torch.Generator().manual_seed(1)
    known = torch.rand(200, 5, 6, generator=generator) < share
    price = torch.randint(0, 1000, (200, 5, 6), generator=generator)
    mids, firsts = state_mids(price.double(), known), first_known_price(price, known)
    arrays = (price.numpy(), known.numpy(), mids.numpy(), firsts.numpy())
    for window, shown, found, first in zip(*arrays, strict=True):
        if not shown.any():
            continue
        exact, inner = {}, {}  # mids by state
        for t, (prices, seen) in enumerate(zip(window, shown, strict=True)):
            if seen[2] and seen[3]:
                exact[t] = (prices[2] + prices[3]) / 2
            if seen[:3].any() and seen[3:].any():
                inner[t] = (prices[:3][seen[:3]].max() + prices[3:][seen[3:]].min()) / 2
        points = exact or inner or {0: window[shown].mean()}
        expected = np.interp(range(5), list(points), list(points.values()))
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)
        levels = (
            window[shown[:, level], level] if shown[:, level].any() else window[shown]
            for level in range(6)
        )
        assert first[0].tolist() == [prices[0] for prices in levels]


@pytest.mark.parametrize("causal", [False, True])
def test_a_layer_agrees_with_torchs_own_up_to_the_rotation(causal):
    """Without rotation (cosine 1, sine 0) it is torch's pre-norm layer with the same weights."""
    config = encoder_config("tiny_transformer", temporal_dim=12, causal=causal)
    torch.manual_seed(0)
    layer = EncoderLayer(config).double().eval()
    reference = nn.TransformerEncoderLayer(
        config.width,
        config.heads,
        config.ffn_width,
        0.0,
        lambda x: nn.functional.gelu(x, approximate="tanh"),
        norm_first=True,
        batch_first=True,
        dtype=torch.float64,
    ).eval()
    with torch.no_grad():
        for ours, theirs in (
            (layer.qkv.weight, reference.self_attn.in_proj_weight),
            (layer.qkv.bias, reference.self_attn.in_proj_bias),
        ):
            theirs.copy_(ours)
        for ours, theirs in (
            (layer.proj, reference.self_attn.out_proj),
            (layer.fc1, reference.linear1),
            (layer.fc2, reference.linear2),
            (layer.norm1, reference.norm1),
            (layer.norm2, reference.norm2),
        ):
            theirs.weight.copy_(ours.weight)
            theirs.bias.copy_(ours.bias)
    x = torch.randn(2, 12, config.width, dtype=torch.float64)
    shape = (12, config.width // config.heads)
    unturned = torch.ones(shape), torch.zeros(shape)
    mask = None
    if causal:
        mask = nn.Transformer.generate_square_subsequent_mask(12, dtype=torch.float64)
    with torch.inference_mode():
        found, expected = layer(x, *unturned), reference(x, mask, is_causal=causal)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_rotation_makes_scores_depend_on_distance_alone():
    cos, sin = rotary_angles(20, 16)
    from lob.model.encoder import rotate

    q, k = torch.randn(16), torch.randn(16)
    queries = rotate(q.expand(1, 20, 1, 16), cos, sin)
    keys_ = rotate(k.expand(1, 20, 1, 16), cos, sin)
    scores = torch.einsum("btnd,bsnd->ts", queries, keys_)
    for distance in (0, 3, 9):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)


def test_causal_embeddings_do_not_see_later_states():
    price_ticks, sizes = windows()
    changed = price_ticks.clone(), sizes.clone()
    changed[0][:, 40:] += 5
    changed[1][:, 40:] *= 3
    for causal, same in ((True, True), (False, False)):
        config = encoder_config("tiny_transformer", depth=16, temporal_dim=64, causal=causal)
        torch.manual_seed(0)
        model = BookEncoder(config).eval()
        with torch.inference_mode():
            before = model.encode(build_inputs(price_ticks, sizes, None, config)[0])[:, :40]
            after = model.encode(build_inputs(*changed, None, config)[0])[:, :40]
        assert torch.equal(before, after) is same


@pytest.mark.parametrize("fill", ["none", "linear", "ladder"])
@pytest.mark.parametrize("causal", [False, True])
def test_no_mask_is_a_mask_that_hides_nothing(fill, causal):
    price_ticks, sizes = windows()
    config = encoder_config("tiny_transformer", depth=16, temporal_dim=64, fill=fill, causal=causal)
    hides_nothing = torch.zeros(3, 64, 16, 2, dtype=torch.bool)
    given = (build_inputs(price_ticks, sizes, mask, config) for mask in (None, hides_nothing))
    tolerance = 1e-6 if fill == "ladder" else 0
    for found, expected in zip(*given, strict=True):
        if isinstance(found, torch.Tensor):
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    mean = torch.log(sizes[:, :5]).mean(dim=(1, 2)).unsqueeze(1)
    centre = build_inputs(price_ticks, sizes, None, config)[3]["size_centre"]
    if causal:
        torch.testing.assert_close(centre[:, 4], mean)


@pytest.mark.parametrize("fill", ["none", "linear", "ladder"])
def test_counted_parameters_and_padded_inputs(fill):
    config = encoder_config("tiny_transformer", depth=10, fill=fill)
    model = BookEncoder(config)
    assert count_parameters(config) == sum(p.numel() for p in model.parameters())
    assert config.input_width % 16 == 0
