"""More inputs of a cell beside loops over single cells; neither hidden nor later values leak."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import metadata, shell
from test_cells import lively
from test_ladder import moving_book

from lob.config import InputError
from lob.model.checkpoint import load_model, save_checkpoint
from lob.model.context import context_channels
from lob.model.embedding import Reconstruction, window_encoder
from lob.model.encoder import encoder_config
from lob.model.inputs import build_inputs
from lob.model.masking import MASKS, make_mask, window_keys
from lob.model.normalisation import fit
from lob.training.saving import training_state

STATES, LEVELS = 40, 24
ALL = ("clock", "size", "tick", "flow")


def small(*context, **choices):
    sizes = {"depth": LEVELS, "temporal_dim": STATES, "width": 32, "heads": 2, "ffn_width": 64}
    sizes |= {"cell_width": 8, "context": context}
    return encoder_config("small_cell_transformer", **sizes | choices)


def windows(mode=None, batch=4):
    price_ticks, sizes = moving_book(batch, STATES, LEVELS)
    rng = np.random.default_rng(1)
    waits = rng.integers(0, 3, (batch, STATES)) * rng.integers(0, 10**9, (batch, STATES))
    times = 1_777_689_383_201_000_000 + torch.from_numpy(waits.cumsum(1))
    if mode is None:
        return price_ticks, sizes, torch.zeros(*sizes.shape, 2, dtype=torch.bool), times
    keys = window_keys(0, 0, torch.arange(batch))
    return price_ticks, sizes, make_mask(keys, STATES, LEVELS, 0.25, mode), times


def signed_log(x):
    return math.copysign(math.log1p(abs(x)), x)


def slowly(price, size, mask, times, centre):
    """Return clock (T,), size (T,), tick and flow (T, L) of one window."""
    clock, sizes, flow = [0.0], [], np.zeros((STATES, LEVELS))
    waits = [math.log1p((b - a) / 1e6) for a, b in itertools.pairwise(times)]
    clock += [waits[i] - sum(waits[: i + 1]) / (i + 1) for i in range(STATES - 1)]
    for t in range(STATES):
        above = []
        for level in range(LEVELS):
            seen = [math.log(size[s][level]) for s in range(t + 1) if not mask[s][level][1]]
            if not mask[t][level][1]:
                above.append(math.log(size[t][level]) - sum(seen) / len(seen))
        sizes.append(sum(above) / len(above) if above else 0.0)
        for level in range(LEVELS):
            if t == 0 or any(mask[t][level]) or any(mask[t - 1][level]):
                continue
            now, before = price[t][level], price[t - 1][level]
            better = now > before if level < LEVELS // 2 else now < before
            added = size[t][level] - size[t - 1][level]
            if now != before:
                added = size[t][level] if better else -size[t - 1][level]
            flow[t, level] = signed_log(added / math.exp(centre if centre.ndim == 0 else centre[t]))
    shown = np.array(price)[~np.array(mask)[..., 0]]
    tick = math.log(1e4 / shown[0]) if len(shown) else 0.0
    return np.array(clock) / 2, np.array(sizes) / 2, tick / 4, flow / 2


@pytest.mark.parametrize(("mode", "causal"), [*((mode, False) for mode in MASKS), (None, True)])
def test_inputs_are_those_of_loops(mode, causal):
    price_ticks, sizes, mask, times = windows(mode)
    parameters = fit(price_ticks, sizes, mask, "book", causal)
    found = context_channels(ALL, price_ticks, sizes, mask, parameters, times)
    assert all(x.shape == sizes.shape and x.dtype == torch.float32 for x in found)
    for number in range(len(sizes)):
        given = (x[number].tolist() for x in (price_ticks, sizes, mask, times))
        centre = parameters["size_centre"][number].squeeze().double().numpy()
        clock, size, tick, flow = slowly(*given, centre)
        expected = clock[:, None], size[:, None], tick, flow
        for name, mine, slow in zip(ALL, found, expected, strict=True):
            slow = np.broadcast_to(slow, (STATES, LEVELS))
            close = 1e-5 if name == "tick" else 1e-4  # any visible price serves for the tick
            np.testing.assert_allclose(mine[number], slow, atol=close, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("mode", MASKS)
def test_hidden_values_change_no_prediction(mode):
    price_ticks, sizes, mask, times = windows(mode)
    config = small(*ALL)
    model = lively(config)
    poisoned = price_ticks.masked_fill(mask[..., 0], 123), sizes.masked_fill(mask[..., 1], 1e9)
    with torch.inference_mode():
        tokens, base, *_ = build_inputs(price_ticks, sizes, mask, config, times)
        others, other_base, *_ = build_inputs(*poisoned, mask, config, times)
        assert others.equal(tokens) and other_base.equal(base)
        assert model(others, other_base).equal(model(tokens, base))
    assert (tokens[..., -4:].abs().amax(dim=(0, 1, 2)) > 0).all()


def test_a_window_without_a_visible_price_has_no_tick():
    price_ticks, sizes, mask, times = windows("entry")
    mask[0, ..., 0] = True
    tokens, *_ = build_inputs(price_ticks, sizes, mask, small("tick"), times)
    others, *_ = build_inputs(price_ticks // 2, sizes, mask, small("tick"), times)
    assert (tokens[0, ..., -1] == 0).all() and (tokens[1:, ..., -1] != 0).all()
    assert others[0].equal(tokens[0])


@pytest.mark.parametrize("causal", [True, False])
def test_causal_vectors_do_not_see_later_states(causal):
    price_ticks, sizes, _, times = windows()
    changed = price_ticks.clone(), sizes.clone(), times.clone()
    changed[0][:, 30:] += 5
    changed[1][:, 30:] *= 3
    changed[2][:, 30:] += 10**9
    config = small(*ALL, causal=causal)
    model = lively(config)
    with torch.inference_mode():
        before, after = (
            model.encode(build_inputs(*x[:2], None, config, x[2])[0])[:, :30]
            for x in ((price_ticks, sizes, times), changed)
        )
    assert torch.allclose(before, after, rtol=0, atol=1e-5) is causal


def test_without_context_the_inputs_are_bit_by_bit_what_they_were():
    price_ticks, sizes, mask, times = windows("patch")
    plain = build_inputs(price_ticks, sizes, mask, small())[0]
    more = build_inputs(price_ticks, sizes, mask, small(*ALL), times)[0]
    assert plain.shape[3] == 16 and more[..., :16].equal(plain)
    for number, name in enumerate(ALL):
        only = build_inputs(price_ticks, sizes, mask, small(name), times)[0]
        assert only[..., 16:].equal(more[..., 16 + number : 17 + number])


def test_a_shuffled_clock_is_that_of_another_window():
    price_ticks, sizes, mask, times = windows("patch", batch=6)
    clock = build_inputs(price_ticks, sizes, mask, small("clock"), times)[0]
    other = build_inputs(price_ticks, sizes, mask, small("shuffled_clock"), times)[0]
    assert other[..., :16].equal(clock[..., :16])
    assert other[..., 16].equal(clock[..., 16].roll(3, 0)) and not other.equal(clock)


@pytest.mark.parametrize("context", [("size", "tick", "flow"), ALL])
def test_the_network_can_be_traced(context):
    price_ticks, sizes, mask, times = windows("patch")
    model = lively(small(*context))
    timed = (times,) if "clock" in context else ()
    for module, inputs in (
        (window_encoder(model, "last"), (price_ticks, sizes, *timed)),
        (Reconstruction(model), (price_ticks, sizes, mask, *timed)),
    ):
        traced = torch.jit.trace(module, tuple(x[:1] for x in inputs), check_trace=False)
        torch.testing.assert_close(traced(*inputs), module(*inputs))


def test_old_checkpoints_load_and_new_ones_keep_their_context(tmp_path):
    plain, rich = lively(small()), lively(small(*ALL))
    old = metadata(plain.config)
    old["encoder"].pop("context")
    save_checkpoint(tmp_path / "old.safetensors", training_state(plain), old)
    save_checkpoint(tmp_path / "new.safetensors", training_state(rich), metadata(rich.config))
    assert load_model(tmp_path / "old.safetensors")[0].config == plain.config
    assert load_model(tmp_path / "new.safetensors")[0].config == rich.config
    for context in (["clok"], "flow", 5, [["flow"]]):
        odd = metadata(rich.config)
        odd["encoder"]["context"] = context
        save_checkpoint(tmp_path / "odd.safetensors", training_state(rich), odd)
        with pytest.raises(InputError, match="odd"):
            load_model(tmp_path / "odd.safetensors")


def test_networks_that_cannot_take_it_refuse_it():
    with pytest.raises(InputError, match="set model_size to one"):
        encoder_config("tiny_transformer", context=("flow",))
    with pytest.raises(InputError, match="normalization"):
        small("flow", normalization="minmax")
    price_ticks, sizes, mask, _ = windows("patch")
    with pytest.raises(ValueError, match="needs the times"):
        build_inputs(price_ticks, sizes, mask, small("clock"))


def test_a_run_with_context_is_trained_scored_and_exported(sampled, tmp_path):
    where = [f"--data_dir={sampled}", f"--runs_dir={tmp_path}"]
    small = ["--depth_dim=16", "--temporal_dim=32", "--batch_size=350", "--epochs=1"]
    words = [*where, *small, "--model_size=small_cell_transformer", "--max_gpus=1", "--slow=1.0"]
    done = shell("fp8_ddp_trainer.py", *words, f"--context={list(ALL)}", "--model_name=rich")
    assert done.returncode == 0, done.stderr
    few = ["--windows=8", "--fit_windows=8", "--probe_windows=40", "--pictures=False"]
    few += ["--masks=['patch']", "--latency_runs=1", "--model_path=rich"]
    done = shell("inference_testing.py", *where, *few)
    assert done.returncode == 0, done.stderr
    given = [*where, f"--exports_dir={tmp_path}/exports", "--model_path=rich"]
    parts = ["--parts=['encoder', 'reconstruction']", "--devices=['cpu']"]
    done = shell("model_exporter.py", *given, *parts)
    assert done.returncode == 0, done.stderr
    assert {file.name for file in (tmp_path / "exports" / "rich").glob("*.pt")} >= {"encoder.pt"}
    refused = shell("model_exporter.py", *given, "--parts=['actor_critic']")
    assert refused.returncode == 2 and "--parts" in refused.stderr
    odd = shell("fp8_ddp_trainer.py", *words, "--context=['clok']")
    assert odd.returncode == 2 and "clok" in odd.stderr
    child = ["--load_model=True", "--model_path=rich"]
    odd = shell("fp8_ddp_trainer.py", *words, *child)
    assert odd.returncode == 2 and "--context=\"['clock', " in odd.stderr
