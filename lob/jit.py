"""How numba compiles our kernels, and what makes calls between them cheap."""

from pathlib import Path
from typing import Any

from numba import njit
from numba.extending import intrinsic

MAX_EXACT = 2**53  # float64 holds every integer up to this one

# Compiled code is kept on disk, and runs in threads side by side. `inlined` copies a function into
# each of its callers: for small functions that are called for every row.
compiled = njit(cache=True, nogil=True)
inlined = njit(cache=True, nogil=True, forceinline=True)


def is_compiled(function: Any) -> bool:
    """Return whether numba's cache holds a function, compiled from the file as it is now."""
    source = Path(function.py_func.__code__.co_filename)
    name = f"{source.stem}.{function.py_func.__name__}-*.nbi"
    cached = Path(function.stats.cache_path).glob(name)
    return any(file.stat().st_mtime > source.stat().st_mtime for file in cached)


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
