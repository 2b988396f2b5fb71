"""Numbers of bf16 in kernels, for which they are the leading half of a float32's bits.

Neither NumPy nor Numba has such a type. A kernel takes them as ``uint16``, computes in float32, and
rounds what it writes.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

_BITS, _FLOAT = ir.IntType(32), ir.FloatType()
_NAN = 0x7FC0


def numbers(tensor: Tensor) -> NDArray[Any]:
    """Return the array that a kernel reads or writes in a tensor's place, of the same memory."""
    array: NDArray[Any] = (
        tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    ).numpy()
    return array


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """Return what numbers of a type are computed in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def _read(typing_context: Any, number: Any) -> Any:
    del typing_context
    if number != types.uint16:
        return number(number), lambda _context, _builder, _signature, arguments: arguments[0]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        bits = builder.shl(builder.zext(arguments[0], _BITS), ir.Constant(_BITS, 16))
        return builder.bitcast(bits, _FLOAT)

    return types.float32(number), generate


def _rounded(typing_context: Any, value: Any, array: Any) -> Any:
    del typing_context, value
    if array.dtype != types.uint16:
        return array.dtype(array.dtype, array), lambda _c, _b, _s, arguments: arguments[0]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature

        def number(bits: int) -> Any:
            return ir.Constant(_BITS, bits)

        bits = builder.bitcast(arguments[0], _BITS)
        # Half of the last place that stays, or a little less where that is even: ties go there.
        odd = builder.and_(builder.lshr(bits, number(16)), number(1))
        rounded = builder.add(bits, builder.add(number(0x7FFF), odd))
        leading = builder.lshr(rounded, number(16))
        is_nan = builder.fcmp_unordered("uno", arguments[0], arguments[0])
        return builder.trunc(builder.select(is_nan, number(_NAN), leading), ir.IntType(16))

    return types.uint16(types.float32, array), generate


def _read_in_python(number: Any) -> Any:
    if not isinstance(number, np.uint16):
        return number
    return np.left_shift(np.uint32(number), np.uint32(16)).view(np.float32)


def _rounded_in_python(value: Any, array: NDArray[Any]) -> Any:
    if array.dtype != np.uint16:
        return value
    return torch.tensor(value, dtype=torch.float32).bfloat16().view(torch.uint16).numpy()[()]


read = _read_in_python if numba.config.DISABLE_JIT else intrinsic(_read)
"""``read(array[i])``: the number that an array of any type holds."""

rounded = _rounded_in_python if numba.config.DISABLE_JIT else intrinsic(_rounded)
"""``array[i] = rounded(value, array)``: the nearest of those that an array can hold."""
