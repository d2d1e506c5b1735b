"""How numba compiles our kernels."""

from pathlib import Path
from typing import Any

from numba import njit
from numba.extending import intrinsic

MAX_EXACT = 2**53  # float64 holds every integer up to this one
compiled = njit(cache=True, nogil=True)
inlined = njit(cache=True, nogil=True, forceinline=True)


def is_compiled(function: Any) -> bool:
    """Whether numba's cache holds a compiled function as it stands in its present source file."""
    source = Path(function.py_func.__code__.co_filename)
    name = f"{source.stem}.{function.py_func.__name__}-*.nbi"
    cached = Path(function.stats.cache_path).glob(name)
    return any(file.stat().st_mtime > source.stat().st_mtime for file in cached)


@intrinsic
def borrow(typing_context, arrays):
    """Return an array, or each of a tuple of arrays, without its owner.

    numba counts references by an atomic add each time an array is handed to a function, which took
    twice the time of the updates themselves. It counts none to an array without an owner. The
    caller has to keep the arrays alive.
    """

    def disown(context: Any, builder: Any, kind: Any, value: Any) -> Any:
        if hasattr(kind, "types"):  # a tuple
            parts = (builder.extract_value(value, index) for index in range(len(kind)))
            return context.make_tuple(
                builder, kind, [disown(context, builder, *p) for p in zip(kind, parts, strict=True)]
            )
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = array.meminfo.type(None)
        return array._getvalue()

    def generate(context, builder, signature, values):
        return disown(context, builder, signature.args[0], values[0])

    return arrays(arrays), generate
