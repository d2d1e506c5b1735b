"""How numba compiles our kernels, and what makes calls between them cheap."""

import functools
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.extending import intrinsic

MAX_EXACT = 2**53  # float64 holds every integer up to this one


def kernel(function: Callable, **options: Any) -> Any:
    """Compile a function by numba, and keep the compiled code on disk.

    If `lob/__pycache__` can't be written, `~/.cache/numba` serves, or a folder of this user under
    the temporary folder, and else none.
    """
    keep_by_sources()
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba's "no locator available": it finds no folder to write to
        return njit(cache=find_other_cache(), **options)(function)


@functools.cache
def keep_by_sources() -> None:
    """Let numba keep compiled code in a folder that is named by a hash of all kernels' sources.

    numba itself looks at a function's own file alone. After a change of another file, which holds
    what the function calls, it would run the old code.
    """
    if numba.config.CACHE_DIR:  # type: ignore[attr-defined] # from NUMBA_CACHE_DIR
        return
    rooms = Path(__file__).parent
    sources = [file.read_bytes() for file in sorted(rooms.rglob("*.py"))]
    kernels = hashlib.sha256(b"".join(text for text in sources if b"lob.jit" in text))
    folder = rooms / "__pycache__" / f"kernels-{kernels.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]


@functools.cache
def find_other_cache() -> bool:
    """Let numba keep compiled code under the temporary folder; return whether it can."""
    try:
        folder = Path(tempfile.gettempdir()) / f"lob-numba-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        # Code that another user could write there would be run as this user.
        is_private = found.st_uid == os.getuid() and not found.st_mode & 0o022
        if is_private and folder.is_dir() and not folder.is_symlink():
            numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
            njit(cache=True)(find_other_cache.__wrapped__)
            say(f"compiled code is kept in {folder}, since code and home can't be written")
            return True
    except (OSError, RuntimeError):
        pass
    numba.config.CACHE_DIR = ""  # type: ignore[attr-defined]
    say("each run compiles anew, which takes a minute: set NUMBA_CACHE_DIR to a folder of yours")
    return False


def say(text: str) -> None:
    if parent_process() is None:  # workers would say it again
        print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


# Kernels run in threads side by side. `inlined` copies a function into each of its callers: for
# small functions that are called for every row. `parallel` runs a kernel's `prange` on all cores.
compiled = functools.partial(kernel, nogil=True)
inlined = functools.partial(kernel, nogil=True, forceinline=True)
parallel = functools.partial(kernel, nogil=True, parallel=True)


def is_compiled(function: Any) -> bool:
    """Return whether numba's cache holds a function."""
    if function.stats.cache_path is None:
        return False
    source = Path(function.py_func.__code__.co_filename)
    name = f"{source.stem}.{function.py_func.__name__}-*.nbi"
    return any(Path(function.stats.cache_path).glob(name))


@intrinsic
def borrow(typing_context, arrays):
    """Return an array, or a tuple of arrays, that numba does not count references to.

    numba counts references by an atomic add each time that an array is handed to a function. In the
    order book this took twice the time of the updates themselves. Here the arrays lose their owner
    (`meminfo`), so that there is nothing to count. The caller has to keep the arrays alive.
    """

    def disown(context: Any, builder: Any, kind: Any, value: Any) -> Any:
        if hasattr(kind, "types"):  # a tuple
            parts = []
            for index, kind_of_part in enumerate(kind):
                part = builder.extract_value(value, index)
                parts.append(disown(context, builder, kind_of_part, part))
            return context.make_tuple(builder, kind, parts)
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = array.meminfo.type(None)
        return array._getvalue()

    def generate(context, builder, signature, values):
        return disown(context, builder, signature.args[0], values[0])

    return arrays(arrays), generate
