"""Processes that train together: how they meet, add up, stop on SIGTERM and end if one fails.

A *rank* is one of these processes, and its number from 0.
"""

import builtins
import contextlib
import math
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing import ProcessContext, ProcessExitedException, ProcessRaisedException

from lob.config import CheckFailed, InputError
from lob.process import REQUESTS

# Gradients of at least so many numbers are summed where they are: 2.4 GB took 7.1 ms that way, and
# 9.9 ms by way of a buffer (two H200).
LARGE = 1 << 22
MEETING_SECONDS = 60  # within which all ranks must reach the first one
WORK_SECONDS = 1800  # that a rank waits for what another one says later; torch's own default
# That the other ranks have, once one failed, to end by themselves, and again after SIGTERM.
GRACE_SECONDS = 10.0
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Stopped(Exception):
    """A rank was asked to stop; `validating`: while it scored windows, to be scored again."""

    def __init__(self, validating: bool = False):
        super().__init__()
        self.validating = validating


class StopSignal:
    """Remembers a request to stop, so that the step under way can be finished and saved.

    It takes SIGTERM, Ctrl-C, and SIGHUP, which a terminal that closes sends. A second Ctrl-C ends
    the process at once. speaks: whether it says that the first Ctrl-C was heard.
    """

    def __init__(self, speaks: bool = False) -> None:
        self.received = False
        self.number = signal.SIGTERM
        self.speaks = speaks
        for number in REQUESTS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.note)

    def note(self, number: int, _: object) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self.speaks and not self.received:  # os.write: a print may be under way
                os.write(2, b"\nstopping: the step is finished and saved; Ctrl-C again: at once\n")
        self.received, self.number = True, signal.Signals(number)

    @property
    def status(self) -> int:
        """The exit status of a program that this request ended, as shells count."""
        return 128 + self.number

    def describe(self) -> str:
        return "Ctrl-C" if self.number == signal.SIGINT else self.number.name


def is_asked(stop: StopSignal | None) -> bool:
    return stop is not None and stop.received


@dataclass
class Team:
    """This process among those that train together."""

    rank: int
    world: int
    device: torch.device

    def total(self, *values: float | Tensor) -> Tensor:
        """Sum each value over all ranks, float64 (n,) on the device."""
        sums = torch.stack(
            [torch.as_tensor(x, dtype=torch.float64, device=self.device) for x in values]
        )
        if self.world > 1:
            dist.all_reduce(sums)
        return sums

    def add_up(self, gradients: list[Tensor]) -> None:
        """Replace each gradient by its sum over all ranks.

        This happens once per step and not in the backward pass, so that passes can be CUDA graphs.
        Large gradients are summed where they are, the many small ones together in a buffer.
        """
        if self.world == 1:
            return
        small = [gradient for gradient in gradients if gradient.numel() < LARGE]
        for gradient in gradients:
            if gradient.numel() >= LARGE:
                dist.all_reduce(gradient)
        if small:
            flat = torch.cat([gradient.flatten() for gradient in small])
            dist.all_reduce(flat)
            parts = flat.split([gradient.numel() for gradient in small])
            sums = [part.view_as(x) for part, x in zip(parts, small, strict=True)]
            torch._foreach_copy_(small, sums)

    def agree(self, value: Any) -> Any:
        """Return the first rank's `value` on all ranks."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def same(self, value: Any, what: str) -> Any:
        """Return `value`. Raises InputError on all ranks if one has another: `what` says of what.

        Ranks of several machines read their own disks, and training on different samples or from
        different checkpoints would go unseen: only gradients are summed.
        """
        differing = int(self.total(value != self.agree(value)))
        if differing:
            raise InputError(
                f"{what} differ: {differing} of {self.world} ranks have others than the first "
                "one: all machines need the same files at the same path"
            )
        return value

    def share(self, model: nn.Module) -> None:
        """Give all ranks the first one's weights."""
        if self.world > 1:
            for parameter in model.parameters():
                dist.broadcast(parameter.data, 0)


@contextlib.contextmanager
def join_team(rank: int, world: int, backend: str, port: int | None) -> Iterator[Team]:
    """Pick this rank's device and join the other ranks; leave them at the end of the block.

    They meet at `port` of this machine; without one, where torchrun's environment says. Raises
    CheckFailed if they don't meet. If the block raises an error, the group is not taken down, since
    that would wait for the other ranks.
    """
    launched = port is None and "RANK" in os.environ
    local = int(os.environ.get("LOCAL_RANK", rank)) if launched else rank
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        store = meet(rank, world, port)
        name = backend if device.type == "cuda" else "gloo"
        dist.init_process_group(name, store=store, rank=rank, world_size=world)
    team = Team(rank, world, device)
    yield team
    if world > 1:
        team.total(0)  # wait for all, as for the first one's last save
        dist.destroy_process_group()


def count_ranks(max_gpus: int | None) -> int:
    """Return how many processes train on this machine: one for each GPU, or `max_gpus` without."""
    gpus = torch.cuda.device_count()
    return min(gpus, max_gpus or gpus) if gpus else max_gpus or 1


def find_launcher() -> tuple[int, int] | None:
    """Return this process's rank and the number of ranks if torchrun started it, else None.

    Raises InputError if the environment holds a part of what torchrun sets, or what can't be.
    """
    given = {name: os.environ[name] for name in LAUNCHER if name in os.environ}
    if "RANK" not in given and "WORLD_SIZE" not in given:
        return None

    def number(name: str, least: int, most: float) -> int:
        text = given.get(name)
        if text is None:
            raise half_a_launcher(f"{name} is missing beside {', '.join(given)}")
        if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
            bounds = f"from {least} on" if most == math.inf else f"from {least} to {most}"
            raise half_a_launcher(f"{name} = {text!r} must be a whole number {bounds}")
        return int(text)

    world = number("WORLD_SIZE", 1, math.inf)
    rank = number("RANK", 0, world - 1)
    if torch.cuda.is_available():
        given.setdefault("LOCAL_RANK", str(rank))
        number("LOCAL_RANK", 0, torch.cuda.device_count() - 1)
    elif "LOCAL_RANK" in given:
        number("LOCAL_RANK", 0, world - 1)
    if world > 1 or "MASTER_PORT" in given:
        number("MASTER_PORT", 1, 65535)
    if world > 1 and not given.get("MASTER_ADDR", "").strip():
        raise half_a_launcher("MASTER_ADDR is missing or empty")
    return rank, world


def half_a_launcher(fault: str) -> InputError:
    return InputError(
        f"the environment is not as torchrun makes it: {fault}: start with torchrun, "
        f"or without it after `unset {' '.join(LAUNCHER)}`"
    )


def meet(rank: int, world: int, port: int | None) -> dist.Store:
    """Wait until all ranks have met, and return the store by which they exchange values.

    The meeting has a short time limit. What a rank waits for later, such as another one's saving,
    may take longer.
    """
    address = f"tcp://127.0.0.1:{port}" if port else "env://"
    limit = timedelta(seconds=MEETING_SECONDS)
    try:
        store, *_ = next(dist.rendezvous(address, rank, world, timeout=limit))
    except dist.DistError as error:
        where = f"127.0.0.1:{port}"
        if not port:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        if "EADDRINUSE" in str(error):
            raise CheckFailed(
                f"rank {rank} can't listen at {where}, which another program uses: "
                "set another port, as by torchrun --master_port"
            ) from None
        raise CheckFailed(
            f"rank {rank} did not meet the other ranks at {where} within {MEETING_SECONDS} s: "
            "start all of them, and let this address through"
        ) from None
    store.set_timeout(timedelta(seconds=WORK_SECONDS))
    return store


def free_port() -> int:
    """Return a port of this machine that no one listens on.

    Raises InputError if ranks can't meet at the loopback address.
    """
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 0))
            probe.listen()
            socket.create_connection(probe.getsockname(), timeout=5).close()
        except OSError as error:
            raise InputError(
                f"ranks can't reach each other by 127.0.0.1 ({error.strerror}): "
                "bring the loopback interface up, or set --max_gpus=1"
            ) from None
        return int(probe.getsockname()[1])


def wait_for_ranks(context: ProcessContext, stop: StopSignal | None = None) -> int:
    """Wait for the processes of `mp.spawn(..., join=False)`; return their exit status.

    stop: what took this process's signals before the ranks began; a request to stop is passed on to
    all of them. If one fails, the others are ended, and its error is raised here: InputError and
    CheckFailed as they are, an OSError or a signal as CheckFailed.
    """
    stop = stop or StopSignal()
    passed_on = False
    try:
        while not context.join(timeout=0.2, grace_period=GRACE_SECONDS):
            if stop.received and not passed_on:
                passed_on = True
                for process in context.processes:
                    process.terminate()
    except KeyboardInterrupt:
        for process in context.processes:
            process.kill()
        raise
    except ProcessExitedException as error:
        if error.signal_name is None and error.exit_code in {128 + x for x in REQUESTS}:
            return error.exit_code  # the ranks have stopped as they were asked to
        if stop.received and error.signal_name == signal.SIGTERM.name:
            print(f"stopped by {stop.describe()} before training began", flush=True)
            return stop.status
        how = error.signal_name or f"status {error.exit_code}"
        raise CheckFailed(
            f"rank {error.error_index} ended with {how}; the other ranks were ended"
        ) from None
    except ProcessRaisedException as error:
        # The error comes as the text of a traceback, whose last line is "module.Kind: message".
        kind, _, text = str(error).strip().splitlines()[-1].partition(": ")
        for expected in (InputError, CheckFailed):
            if kind == f"{expected.__module__}.{expected.__name__}":
                raise expected(text) from None
        if issubclass(getattr(builtins, kind, Exception), OSError):  # a full disk, say
            raise CheckFailed(text) from None
        raise
    return 0
