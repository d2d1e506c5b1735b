"""Ranks that train together: started, stopped by SIGTERM, resumed in another number, failing."""

import multiprocessing
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
from test_trainer_settings import settings, trainer

import fp8_ddp_trainer
from lob.config import CheckFailed, InputError
from lob.training import distributed
from lob.training.distributed import Team, free_port, wait_for_ranks

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="ranks of a GPU machine are its GPUs"
)


def launch(work, ranks: int, *arguments) -> None:
    """Start ranks as the trainer does."""
    wait_for_ranks(mp.spawn(work, (ranks, free_port(), *arguments), nprocs=ranks, join=False))


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    """Return the processes that a started trainer spawned, rank 0 first."""
    children = psutil.Process(process.pid).children()
    ranks = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    return sorted(ranks, key=lambda rank: rank.create_time())


@pytest.fixture
def start(sampled, tmp_path):
    """Start trainers on two ranks, and end what is left of them after the test."""
    started = []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def begin(*words: str) -> subprocess.Popen:
        call = command(sampled, tmp_path, "--max_gpus=2", *words)
        started.append(subprocess.Popen(call, cwd=ROOT, **pipes))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children():
                child.kill()
        process.kill()


def test_sigterm_stops_all_ranks_and_one_rank_goes_on_with_the_same_steps(sampled, tmp_path, start):
    recipe = ("--epochs=2", "--slow=0.5", "--outlook=0.5")
    train(sampled, tmp_path, "--model_name=one", "--batch_size=64", *recipe)
    process = start("--model_name=two", *recipe)  # windows per step: 2 x 32 x 2, as 64 x 2
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
    assert process.returncode == 143, said
    assert "on each of 2 rank(s) on cpu" in printed and "stopped by SIGTERM at step" in printed
    assert len(started) == 2 and not any(rank.is_running() for rank in started)
    assert 2 <= len(losses(run)) < len(losses(tmp_path / "one"))
    assert weights(run)["model.embed.weight"].isfinite().all()
    printed = train(sampled, tmp_path, "--model_name=two", *recipe, "--resume=True").stdout
    assert "128 windows in 4 pass(es) on each of 1 rank(s)" in printed
    np.testing.assert_allclose(losses(run), losses(tmp_path / "one"), rtol=1e-6)
    folders = run, tmp_path / "one"
    found, expected = (float(metrics(each, "epoch")[0]["train_loss"]) for each in folders)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_run_with_its_name(tmp_path, start, victim):
    process = start("--epochs=1000")
    run = tmp_path / "pretrained_ddp"
    wait_for(process, lambda: (run / "metrics.csv").exists() and len(losses(run)) >= 2)
    started = ranks_of(process)
    started[victim].send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    line = f"fp8_ddp_trainer.py: rank {victim} ended with SIGKILL; the other ranks were ended\n"
    assert line in said
    assert "Traceback" not in said
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in started)


def fail_or_wait(rank: int, world: int, port: int, kind: str) -> None:
    """Rank 1 fails; rank 0 ends at once or, if a check fails, would wait for an hour."""
    if rank == 0:
        return time.sleep(3600 if kind == "check" else 0)
    errors = {"input": InputError, "check": CheckFailed, "disk": OSError, "bug": ZeroDivisionError}
    raise errors[kind](f"{kind} at rank {rank}")


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
    said = r"by 127.0.0.1 \(Network is unreachable\): bring the loopback interface up"
    with pytest.raises(InputError, match=said):
        launch(fail_or_wait, 2, "input")


@pytest.mark.parametrize("started", ["here", "by torchrun"])
def test_ranks_that_never_meet_end_with_one_line(monkeypatch, started):
    monkeypatch.setattr(distributed, "MEETING_SECONDS", 1)
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    said = f"rank 1 did not meet the other ranks at 127.0.0.1:{port} within 1 s: "
    with (
        pytest.raises(CheckFailed, match=said) as caught,
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
        with pytest.raises(InputError, match="files differ: 1 of 2 ranks have others"):
            team.same({"rank": rank}, "files")
        assert team.same({"rank": 1.5}, "files") == {"rank": 1.5}
        torch.save(gradients, folder / f"{rank}.pt")


def test_gradients_become_their_sums_and_differing_ranks_are_refused(tmp_path):
    launch(add_up_on, 2, tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert [x.unique().tolist() for x in found] == [[3.0], [21.0], [11.0]]
        assert [x.shape for x in found] == [(3,), (4, 5), (2, 2)]


# What a rank imports, some of it late: torch's compiler at the optimizer's first call.
IMPORTED = ["fp8_ddp_trainer", "lob.training.board", "lob.training.picture", "torch._dynamo"]


def train_on(ranks: int, data: Path, runs: Path, name: str, **changes) -> Path:
    """Train on so many ranks with 64 windows a step; return the run's folder.

    The ranks are forked from a process that has imported the trainer, which saves seconds a rank.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(IMPORTED)
    choices = {"model_name": name, "batch_size": 64 // ranks, "accumulation_steps": 1} | changes
    if ranks == 1:
        assert fp8_ddp_trainer.main(settings(data, runs, **choices)) == 0
    else:
        given = ranks, free_port(), settings(data, runs, **choices)
        method = {"nprocs": ranks, "join": False, "start_method": "forkserver"}
        assert wait_for_ranks(mp.start_processes(fp8_ddp_trainer.train, given, **method)) == 0
    return runs / name


def scores(run: Path) -> list[float]:
    """Return the losses of a run's validations and test: all, and of each part."""
    rows = [
        row for kind in ("validation", "validation_patch", "test") for row in metrics(run, kind)
    ]
    return [float(row[f"{name}_loss"]) for row in rows for name in ("validation", "ladder")]


def test_four_and_eight_ranks_have_the_losses_of_one(sampled, tmp_path, undrawn):
    """Five validation windows leave some of eight ranks without any; four ranks go on with it."""
    recipe = {"validation_windows": 5, "mirror": True, "slow": 0.5, "size_noise": 1.0}
    recipe |= {"outlook": 0.5, "checkpoint_minutes": 1e-9, "keep_checkpoints": 5}
    one = train_on(1, sampled, tmp_path, "one", **recipe)
    assert len(losses(one)) == 10 and len(scores(one)) == 10
    for ranks in (4, 8):
        run = train_on(ranks, sampled, tmp_path, f"on_{ranks}", **recipe)
        np.testing.assert_allclose(losses(run), losses(one), rtol=1e-6)
        np.testing.assert_allclose(scores(run), scores(one), rtol=1e-5)
    for file in (run / "checkpoints").glob("step_*"):
        if int(file.stem.removeprefix("step_")) > 7:  # as if it had been killed after step 7
            file.unlink()
    changes = {"batch_size": 8, "resume": True}
    run = train_on(4, sampled, tmp_path, "on_8", **recipe, **changes)
    np.testing.assert_allclose(losses(run), losses(one), rtol=1e-6)
    np.testing.assert_allclose(scores(run), scores(one), rtol=1e-5)


def start_machine(number: int, port: int, data: Path, runs: Path) -> subprocess.Popen:
    """Start a trainer as torchrun does on one of two machines with one process each."""
    launcher = {"RANK": str(number), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    launcher |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    call = command(data, runs, "--model_name=machines", "--accumulation_steps=1", "--epochs=1")
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    return subprocess.Popen(call, cwd=ROOT, env=os.environ | launcher, **pipes)


def test_two_machines_train_as_two_ranks_of_one(sampled, tmp_path):
    spawned = train_on(2, sampled, tmp_path, "spawned", mirror=True)
    assert len(losses(spawned)) == 10
    port = free_port()
    machines = [start_machine(number, port, sampled, tmp_path) for number in range(2)]
    said = [machine.communicate(timeout=120)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["machines", "spawned"]
    run = tmp_path / "machines"
    assert losses(run) == losses(spawned) and scores(run) == scores(spawned)


def test_ranks_compare_all_that_they_read_from_their_disks(sampled, tmp_path, monkeypatch, undrawn):
    one = train_on(1, sampled, tmp_path, "one")
    compared = []
    monkeypatch.setattr(Team, "same", lambda _, value, what: compared.append(what) or value)
    trainer(sampled, tmp_path, load_model=True, model_path=str(one))
    checkpoints, samples, weights = compared
    assert checkpoints.endswith("run/checkpoints") and samples == f"the samples in {sampled}"
    assert weights == str(one / "checkpoints" / "best.safetensors")
