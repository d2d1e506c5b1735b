"""Processes that train together: started, stopped by SIGTERM, resumed in another number, and ended
when one fails.
"""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.multiprocessing as mp
from conftest import ROOT
from test_trainer import command, losses, metrics, train, wait_for, weights

from lob.config import CheckFailed, InputError
from lob.training import distributed
from lob.training.distributed import free_port, wait_for_ranks

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="ranks of a GPU machine are its GPUs"
)


def launch(work, ranks: int, *arguments) -> None:
    """Start ranks as the trainer does."""
    wait_for_ranks(mp.spawn(work, (ranks, free_port(), *arguments), nprocs=ranks, join=False))


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes that a started trainer spawned, rank 0 first."""
    children = psutil.Process(process.pid).children()
    return sorted(
        (c for c in children if "spawn_main" in " ".join(c.cmdline())),
        key=lambda c: c.create_time(),
    )


@pytest.fixture
def start(sampled, tmp_path):
    """Start a trainer on two ranks; whatever the test comes to, it is gone at its end."""
    started = []

    def begin(*words: str) -> subprocess.Popen:
        started.append(
            subprocess.Popen(
                command(sampled, tmp_path, "--max_gpus=2", *words),
                cwd=ROOT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        return started[-1]

    yield begin
    for process in started:
        for child in psutil.Process(process.pid).children() if process.poll() is None else ():
            child.kill()
        process.kill()


def test_sigterm_stops_all_ranks_and_one_rank_goes_on_with_the_same_steps(sampled, tmp_path, start):
    recipe = ("--epochs=1", "--slow=0.5", "--outlook=0.5")
    train(sampled, tmp_path, "--model_name=one", "--batch_size=64", *recipe)
    process = start("--model_name=two", *recipe)  # 2 x 32 x 2 = 64 x 2
    run = tmp_path / "two"
    wait_for(process, lambda: (run / "metrics.csv").exists() and len(losses(run)) >= 2)
    started = ranks_of(process)
    for rank in started:
        rank.suspend()
    said = train(sampled, tmp_path, "--model_name=two", *recipe, "--resume=True", status=2).stderr
    for rank in started:
        rank.resume()
    reason = "is still running: wait for its end, or stop it, to resume it"
    assert said == f"fp8_ddp_trainer.py: {run} {reason}\n"
    process.terminate()
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "on each of 2 rank(s) on cpu" in printed and "stopped by SIGTERM at step" in printed
    assert len(started) == 2 and not any(rank.is_running() for rank in started)
    assert 2 <= len(losses(run)) < len(losses(tmp_path / "one"))
    assert weights(run)["model.embed.weight"].isfinite().all()
    printed = train(sampled, tmp_path, "--model_name=two", *recipe, "--resume=True").stdout
    assert "128 windows in 4 pass(es) on each of 1 rank(s)" in printed
    np.testing.assert_allclose(losses(run), losses(tmp_path / "one"), rtol=1e-6)
    found, expected = (
        metrics(tmp_path / name, "epoch")[0]["train_loss"] for name in ("two", "one")
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_run_with_its_name(tmp_path, start, victim):
    process = start("--epochs=1000")
    run = tmp_path / "pretrained_ddp"
    wait_for(process, lambda: (run / "metrics.csv").exists() and len(losses(run)) >= 2)
    started = ranks_of(process)
    started[victim].send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert (
        f"fp8_ddp_trainer.py: rank {victim} ended with SIGKILL; the other ranks were ended\n"
        in said
    )
    assert "Traceback" not in said
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in started)


def fail_or_wait(rank: int, world: int, port: int, kind: str) -> None:
    """Rank 1 fails; the other ends at once or, where the failure is a check's, would wait for an
    hour.
    """
    if rank == 0:
        return time.sleep(3600 if kind == "check" else 0)
    raise {"input": InputError, "check": CheckFailed, "disk": OSError, "bug": ZeroDivisionError}[
        kind
    ](f"{kind} at rank {rank}")


@pytest.mark.parametrize(
    ("kind", "raised"),
    [("input", InputError), ("check", CheckFailed), ("disk", CheckFailed), ("bug", Exception)],
)
def test_the_error_of_a_rank_is_raised_by_the_one_who_started_it(kind, raised):
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(raised, match=f"{kind} at rank 1") as caught:
            launch(fail_or_wait, 2, kind)
    finally:
        signal.signal(signal.SIGTERM, before)
    if kind != "bug":
        assert str(caught.value) == f"{kind} at rank 1"


def test_a_port_in_use_is_not_taken():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        taken = holder.getsockname()[1]
        assert all(free_port() != taken for _ in range(50))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))
    assert "MASTER_PORT" not in os.environ


def test_a_machine_without_loopback_is_refused_at_once(monkeypatch):
    def unreachable(*_, **__):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(
        InputError,
        match=r"by 127.0.0.1 \(Network is unreachable\): bring the loopback interface up",
    ):
        launch(fail_or_wait, 2, "input")


@pytest.mark.parametrize("started", ["here", "by torchrun"])
def test_ranks_that_never_meet_end_with_one_line(monkeypatch, started):
    monkeypatch.setattr(distributed, "MEETING_SECONDS", 1)
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    where = f"127.0.0.1:{port}"
    with (
        pytest.raises(
            CheckFailed, match=f"rank 1 did not meet the other ranks at {where} within 1 s: "
        ) as caught,
        distributed.join_team(1, 2, "gloo", port if started == "here" else None),
    ):
        pass
    assert "\n" not in str(caught.value)


def add_up_on(rank: int, world: int, port: int, folder: Path) -> None:
    distributed.LARGE = 10
    with distributed.join_team(rank, world, "gloo", port) as team:
        gradients = [
            torch.full((3,), rank + 1.0),
            torch.full((4, 5), rank + 10.0),
            torch.full((2, 2), rank + 5.0),
        ]
        team.add_up(gradients)
        torch.save(gradients, folder / f"{rank}.pt")


def test_large_and_small_gradients_become_their_sums(tmp_path):
    launch(add_up_on, 2, tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert [x.unique().tolist() for x in found] == [[3.0], [21.0], [11.0]]
        assert [x.shape for x in found] == [(3,), (4, 5), (2, 2)]
