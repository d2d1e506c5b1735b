"""How kernels are compiled by numba, and what that costs at their borders."""

from typing import Any

from numba import njit
from numba.extending import intrinsic

MAX_EXACT = 2**53  # the largest integer up to which float64 holds all
compiled = njit(cache=True, nogil=True)
inlined = njit(cache=True, nogil=True, forceinline=True)


@intrinsic
def borrow(typing_context, arrays):
    """The same arrays (one, or a tuple of them) without their owner: numba counts no references to them.

    The counting, an atomic add each time an array is handed on, took twice the time of the updates themselves.
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
