"""The process that a script runs in: its environment, its cores, and what ends it early.

`prepare` comes before the heavy imports: torch, numba and matplotlib read the environment when they
are imported.
"""

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

# By torch's default, threads that wait for one another spin. With one other busy process on two
# cores they took 1.9 of them, and training fell from 75 windows/s to 2.6.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
INTERRUPTED = 128 + signal.SIGINT  # exit status of a program that Ctrl-C ended, as shells count
# What asks a script to end: Ctrl-C, a scheduler or `timeout`, and a terminal that closes.
REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def prepare(script: str | Path) -> None:
    """Make this process fit to run a script; called before torch, numba or matplotlib load.

    Sets what their imports read, and turns Ctrl-C, SIGTERM, or a package that is missing, into one
    line until `requests_raise` takes over.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    # Pictures are files. A notebook's backend, inherited by a script, can't be imported there.
    os.environ["MPLBACKEND"] = "Agg"
    if isinstance(sys.stdout, io.TextIOWrapper):  # None if the shell closed it
        sys.stdout.reconfigure(errors="backslashreplace")  # for names of files in other encodings
    name = Path(script).name

    def stop(number: int, _: FrameType | None) -> NoReturn:
        os.write(2, f"{name}: interrupted\n".encode())
        os._exit(128 + number)  # nothing has been written yet, or all of it is in place

    # A shell that starts a program in the background lets it ignore Ctrl-C.
    for number in REQUESTS:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, stop)

    def report(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> Any:
        missing = getattr(error, "name", None)
        if not issubclass(kind, ModuleNotFoundError) or str(missing).split(".")[0] == "lob":
            return sys.__excepthook__(kind, error, place)
        remedy = "run .venv/bin/python, or pip install -r requirements.txt"
        print(f"{name}: the package {missing} is not installed: {remedy}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(2)

    sys.excepthook = report


@contextlib.contextmanager
def requests_raise() -> Iterator[None]:
    """Raise Interrupted in the block on SIGINT, SIGTERM or SIGHUP, unless they are ignored.

    So that the block can remove unfinished output and end its child processes. Where Python drops
    what is raised, as in `__del__` and in calls from C (numba compiles with some), it is raised
    again a moment later.
    """

    def interrupt(number: int, _: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    def ask_again(dropped: Any) -> None:
        if isinstance(dropped.exc_value, Interrupted):
            again = threading.Timer(0.1, os.kill, (os.getpid(), dropped.exc_value.number))
            again.daemon = True
            again.start()
        else:
            hook(dropped)

    before = {}
    hook, sys.unraisablehook = sys.unraisablehook, ask_again
    if threading.current_thread() is threading.main_thread():
        for number in REQUESTS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_requests_to_parent() -> None:
    """Block Ctrl-C in this thread, and in the processes that it starts, whose parent ends them.

    A terminal sends Ctrl-C to all of them, and each would print a traceback of its own.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@contextlib.contextmanager
def requests_left_to_parent() -> Iterator[None]:
    """Do this to the processes that the block starts; Ctrl-C in the block is heard at its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def count_cores() -> int:
    """Return how many cores this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def drawing(what: str) -> Iterator[None]:
    """Say in one line that a picture failed, and go on: it is worth less than the work it shows."""
    try:
        yield
    except BrokenPipeError:  # no one reads what the block prints
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or "no reason given"
        name = Path(sys.argv[0]).name
        print(
            f"{name}: {what} not drawn ({type(error).__name__}: {reason}); the rest goes on",
            file=sys.stderr,
            flush=True,
        )
