"""Exported policies go on learning and exported streams run, in Python and in examples/cpp."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_exporter import DEPTH, checkpoint, close, export, some_windows

from lob.book.states import open_book
from lob.config import InputError
from lob.model.checkpoint import load_model
from lob.model.inputs import build_inputs
from lob.model.pretrained import Stream


def test_a_policy_goes_on_learning_only_where_it_was_exported_to(sampled, tmp_path):
    checkpoint(tmp_path, dropout=0.5)
    inputs = (*some_windows(sampled, 4), torch.randn(4, 2))
    for trainable in (True, False):
        folder = export(
            sampled,
            tmp_path,
            parts=["actor_critic"],
            formats=["torchscript"],
            trainable=trainable,
            training_mode=True,
            state_features=2,
            policy_widths=[],
            value_widths=[8, 8],
        )
        learns = "_trainable" if trainable else ""
        policy = torch.jit.load(str(folder / f"actor_critic{learns}.pt"))
        assert policy.training
        learning = {name for name, p in policy.named_parameters() if p.requires_grad}
        assert any(name.startswith("window.encoder.layers.1.fc2") for name in learning) is trainable
        assert {"state_head.0.weight", "policy_head.0.weight", "value_head.4.bias"} <= learning
        embedded = [policy.embed(*inputs[:2]) for _ in range(2)]
        assert torch.equal(*embedded) is not trainable  # dropout is the encoder's alone
        sum(x.square().sum() for x in policy(*inputs)).backward()
        gradients = {
            name for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()
        }
        assert {"policy_head.0.weight", "state_head.0.weight"} <= gradients <= learning
        reached = any(name.startswith("window.encoder.layers.0.qkv") for name in gradients)
        assert reached is trainable
        policy.eval()
        first, second = policy(*inputs), policy(*inputs)
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def ppo_losses(
    policy: torch.jit.ScriptModule, price_ticks: torch.Tensor, sizes: torch.Tensor
) -> list[float]:
    """Take the ten steps of examples/cpp/policy.cpp; return the loss before each."""
    mid = price_ticks[:, -1, DEPTH // 2 - 1 : DEPTH // 2 + 1].double().mean(1)
    actions = torch.arange(len(mid) - 1) % 3
    rewards = ((actions - 1) * (mid[1:] / mid[:-1] - 1) * 1e4).float()
    inputs = price_ticks[:-1], sizes[:-1], torch.zeros(len(actions), 4)
    learning = [p for p in policy.train().parameters() if p.requires_grad]
    adam = torch.optim.Adam(learning, lr=3e-4, eps=1e-5)
    losses, before, advantage = [], None, None
    for _ in range(10):
        logits, value = policy(*inputs)
        every = torch.distributions.Categorical(logits=logits)
        if before is None:
            before, advantage = every.log_prob(actions).detach(), rewards - value.detach()
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        ratio = (every.log_prob(actions) - before).exp()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
        value_loss = torch.nn.functional.mse_loss(value, rewards)
        loss = -surrogate + 0.5 * value_loss - 0.01 * every.entropy().mean()
        losses.append(float(loss.detach()))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 0.5)
        adam.step()
    return losses


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The folder of the programs of examples/cpp, built."""
    if not (shutil.which("cmake") and shutil.which("g++")):
        pytest.skip("needs cmake and g++")
    build = tmp_path_factory.mktemp("cpp")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    configure = ["cmake", *generator, "-B", build, prefix]
    folder = ROOT / "examples" / "cpp"
    subprocess.run(configure, cwd=folder, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
    return build


def test_a_cpp_program_gives_pythons_outputs_and_trains_on(sampled, programs, tmp_path):
    best = checkpoint(tmp_path)
    exported = export(
        sampled,
        tmp_path,
        parts=["actor_critic"],
        formats=["torchscript"],
        trainable=True,
        training_mode=True,
    )
    price_ticks, sizes = some_windows(sampled, 13)
    np.save(tmp_path / "price_ticks.npy", price_ticks.numpy().astype(np.int32))
    np.save(tmp_path / "sizes.npy", sizes.numpy())
    arrays = [tmp_path / "price_ticks.npy", tmp_path / "sizes.npy"]
    command = [programs / "policy", exported / "actor_critic_trainable.pt", *arrays]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, *_ in lines] == ["embedding", "policy", *["loss"] * 10]
    printed = [np.array(values, dtype=float) for _, *values in lines]
    model, _ = load_model(best)
    policy = torch.jit.load(str(exported / "actor_critic_trainable.pt")).eval()
    with torch.inference_mode():
        tokens = build_inputs(price_ticks, sizes, None, model.config)[0]
        embedding = model.encode(tokens)[-1, -1].numpy()
        logits, _ = policy(price_ticks[-1:], sizes[-1:], torch.zeros(1, 4))
    assert close(printed[0], embedding, "fp32")
    assert close(printed[1], logits.softmax(1)[0].numpy(), "fp32")
    losses = np.concatenate(printed[2:])
    np.testing.assert_allclose(losses, ppo_losses(policy, price_ticks, sizes), rtol=1e-4, atol=1e-5)
    assert losses[-1] < losses[0]
    done = subprocess.run([*command[:3], command[1]], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no .npy file" in done.stderr


def test_a_cpp_program_streams_a_book_as_python_does(sampled, programs, tmp_path):
    best = checkpoint(tmp_path, causal=True)
    exported = export(sampled, tmp_path, parts=["stream"], formats=["torchscript"])
    book = open_book(sampled / "book_states" / "BTC_USD")
    price_ticks, sizes = book.price_ticks[:90], book.sizes[:90]  # longer than a window
    np.save(tmp_path / "price_ticks.npy", price_ticks)
    np.save(tmp_path / "sizes.npy", sizes)
    arrays = [tmp_path / "price_ticks.npy", tmp_path / "sizes.npy"]
    command = [programs / "stream", exported / "stream.pt", *arrays]
    done = subprocess.run([*command, "30"], capture_output=True, text=True, check=True)
    printed = np.array([line.split() for line in done.stdout.splitlines()], dtype=float)
    assert printed[:, 0].tolist() == [29, 59, 89] and "90 states" in done.stderr
    stream = Stream(load_model(best)[0])
    vectors = [stream.update(*state) for state in zip(price_ticks, sizes, strict=True)]
    assert close(printed[:, 1:], np.stack(vectors)[29::30], "fp32")
    np.save(tmp_path / "sizes.npy", sizes[:80])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "of one shape" in done.stderr


def test_an_exported_stream_gives_what_whole_windows_give(sampled, tmp_path, capsys):
    checkpoint(tmp_path, causal=True)
    both = {"precisions": ["fp32", "bf16"], "formats": ["torchscript"]}
    folder = export(sampled, tmp_path, parts=["stream"], **both)
    assert {file.name for file in folder.glob("*.pt")} == {"stream.pt", "stream_bf16.pt"}
    about = json.loads((folder / "stream.pt.json").read_text())
    assert about["inputs"]["sizes"]["shape"] == ["B", DEPTH]
    assert about["outputs"]["embedding"]["shape"] == ["B", 64]
    for choices, said in (
        ({"formats": ["onnx"]}, "an ONNX file keeps nothing between two states"),
        ({"formats": ["torchscript"], "runs_dir": str(tmp_path / "blind")}, "--causal=True"),
    ):
        checkpoint(tmp_path / "blind")
        with pytest.raises(InputError, match=said):
            export(sampled, tmp_path, parts=["stream"], **choices)
