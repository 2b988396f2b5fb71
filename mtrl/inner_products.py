"""Inner products of a few long rows, which a general matrix product takes twice and at its slowest.

A number of a row that was read serves several sums, and a part of all rows stays in the innermost
cache until all sums have had it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from . import bf16
from .bf16 import numbers, read
from .compiler import Compiler, use_widest_vectors

BYTES_AT_A_TIME = 3072
"""Of each row: seven rows' stay in the innermost cache."""

AT_A_TIME, AT_A_TIME_BF16 = BYTES_AT_A_TIME // 4, BYTES_AT_A_TIME // 2

_kernel = Compiler("inner_products", Path(__file__), Path(bf16.__file__)).vectorised_kernel


@functools.cache
def takes_bf16() -> bool:
    """Tell whether rows may be of bf16: kernels are compiled for a processor that multiplies it."""
    config = numba.config
    if config.DISABLE_JIT or config.CPU_NAME not in (None, "", "host") or config.CPU_FEATURES:
        return False
    return bool(binding.get_host_cpu_features().get("avx512bf16"))


def add_inner_products(
    rows: Float[Tensor, "E K _"], length: int, gramian: Float[Tensor, "K K"]
) -> None:
    """Add those of the first `length` numbers of each row, summed over networks.

    Args:
        rows: Those of one network a constant distance apart. Of bf16 only where `takes_bf16`, and
            numbers below 1e-38 then count as zero, in them and in their products.
        length: What follows in a row is not looked at.
        gramian: float64.
    """
    if rows.dtype == torch.bfloat16:
        _bf16(numbers(rows), length, gramian.numpy())
    else:
        array = rows.numpy()
        _float(array, length, gramian.numpy(), np.zeros(1, array.dtype))


class _BF16(ir.Type):  # type: ignore[misc]
    """LLVM's type, which llvmlite has no name for."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BF16)

    def __hash__(self) -> int:
        return hash(_BF16)


def _generate_dot_products(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    del signature
    *addresses, length, result = arguments
    sums_type, pairs_type = ir.VectorType(ir.FloatType(), 16), ir.VectorType(_BF16(), 32)
    multiply_add = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(sums_type, [sums_type, pairs_type, pairs_type]),
        "llvm.x86.avx512bf16.dpbf16ps.512",
    )
    add_up = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(ir.FloatType(), [ir.FloatType(), sums_type]),
        "llvm.vector.reduce.fadd.v16f32",
    )
    rows = [builder.inttoptr(address, ir.IntType(16).as_pointer()) for address in addresses]
    zeros = ir.Constant(sums_type, [0.0] * 16)
    sums = [cgutils.alloca_once_value(builder, zeros) for _ in range(12)]
    for each in sums:
        builder.store(zeros, each)  # again: what is above is done once for a whole kernel
    start, step = ir.Constant(length.type, 0), ir.Constant(length.type, 32)
    with cgutils.for_range_slice(builder, start, length, step) as (place, _):
        parts = []
        for row in rows:
            part = builder.load(builder.bitcast(builder.gep(row, [place]), pairs_type.as_pointer()))
            part.align = 2
            parts.append(part)
        for number, each in enumerate(sums):
            left, right = parts[number // 4], parts[3 + number % 4]
            builder.store(builder.call(multiply_add, [builder.load(each), left, right]), each)
    first = builder.inttoptr(result, ir.FloatType().as_pointer())
    for number, each in enumerate(sums):
        total = builder.call(
            add_up, [ir.Constant(ir.FloatType(), 0.0), builder.load(each)], fastmath=("reassoc",)
        )
        builder.store(total, builder.gep(first, [ir.Constant(ir.IntType(64), number)]))
    return context.get_dummy_value()


def _type_of_dot_products(
    typing_context: Any,
    x: Any,
    y: Any,
    z: Any,
    a: Any,
    b: Any,
    c: Any,
    d: Any,
    length: Any,
    result: Any,
) -> Any:
    del typing_context, x, y, z, a, b, c, d, length, result
    return types.void(*[types.intp] * 9), _generate_dot_products


_dot_products: Callable[..., None] = intrinsic(_type_of_dot_products)
"""Write the twelve of rows x, y, z with a, b, c, d, whose first numbers' addresses are given.

Two numbers of bf16 are multiplied and added in the place of one float32, which no compiler makes of
a loop by itself. `length` is a multiple of 32, `result` the address of twelve numbers of float32.
"""


@_kernel
def _bf16(rows: NDArray[np.uint16], length: int, gramian: NDArray[np.float64]) -> None:
    """Add the rows' inner products to a symmetric matrix.

    Three rows by four at a time. Where there are not so many left, the last stands in for those
    that are missing, and what it yields is left out.
    """
    E, K, _ = rows.shape
    sums = np.empty(12, np.float32)
    result = sums.ctypes.data
    for e in range(E):
        for first in range(0, length, AT_A_TIME_BF16):
            size = min(length - first, AT_A_TIME_BF16)
            even = size // 32 * 32
            start = rows.ctypes.data + e * rows.strides[0] + 2 * first
            for i in range(0, K, 3):
                x = start + i * rows.strides[1]
                y = start + min(i + 1, K - 1) * rows.strides[1]
                z = start + min(i + 2, K - 1) * rows.strides[1]
                for j in range(i // 4 * 4, K, 4):
                    a = start + j * rows.strides[1]
                    b = start + min(j + 1, K - 1) * rows.strides[1]
                    c = start + min(j + 2, K - 1) * rows.strides[1]
                    d = start + min(j + 3, K - 1) * rows.strides[1]
                    _dot_products(x, y, z, a, b, c, d, even, result)
                    for left in range(i, min(i + 3, K)):
                        for right in range(max(left, j), min(j + 4, K)):
                            total = sums[4 * (left - i) + right - j]
                            for place in range(first + even, first + size):
                                total += read(rows[e, left, place]) * read(rows[e, right, place])
                            gramian[left, right] += total
    for i in range(K):
        for j in range(i):
            gramian[i, j] = gramian[j, i]


@_kernel
def _float(
    rows: NDArray[Any], length: int, gramian: NDArray[np.float64], zeros: NDArray[Any]
) -> None:
    """Add the rows' inner products to a symmetric matrix; `zeros` are of the rows' type.

    A general product computes each of them twice, and is at its slowest with so few rows. Below the
    diagonal `gramian` holds anything until the end.
    """
    use_widest_vectors()
    E, K, _ = rows.shape
    zero = zeros[0]
    for e in range(E):
        for first in range(0, length, AT_A_TIME):
            part = slice(first, min(length, first + AT_A_TIME))
            for i in range(0, K - 2, 3):
                # Three rows by four, from the last on: a number that was read serves several sums.
                x, y, z = rows[e, i, part], rows[e, i + 1, part], rows[e, i + 2, part]
                j = K - 4
                while j >= 0 and j > i - 4:
                    a, b = rows[e, j, part], rows[e, j + 1, part]
                    c, d = rows[e, j + 2, part], rows[e, j + 3, part]
                    xa, xb, xc, xd = zero, zero, zero, zero
                    ya, yb, yc, yd = zero, zero, zero, zero
                    za, zb, zc, zd = zero, zero, zero, zero
                    for p in range(len(x)):
                        xa += x[p] * a[p]
                        ya += y[p] * a[p]
                        za += z[p] * a[p]
                        xb += x[p] * b[p]
                        yb += y[p] * b[p]
                        zb += z[p] * b[p]
                        xc += x[p] * c[p]
                        yc += y[p] * c[p]
                        zc += z[p] * c[p]
                        xd += x[p] * d[p]
                        yd += y[p] * d[p]
                        zd += z[p] * d[p]
                    for row, (of_a, of_b, of_c, of_d) in enumerate(
                        ((xa, xb, xc, xd), (ya, yb, yc, yd), (za, zb, zc, zd))
                    ):
                        gramian[i + row, j] += of_a
                        gramian[i + row, j + 1] += of_b
                        gramian[i + row, j + 2] += of_c
                        gramian[i + row, j + 3] += of_d
                    j -= 4
                for k in range(i, j + 4):
                    a = rows[e, k, part]
                    xa, ya, za = zero, zero, zero
                    for p in range(len(x)):
                        xa += x[p] * a[p]
                        ya += y[p] * a[p]
                        za += z[p] * a[p]
                    gramian[i, k] += xa
                    gramian[i + 1, k] += ya
                    gramian[i + 2, k] += za
            for i in range(K // 3 * 3, K):
                for k in range(i, K):
                    x, a, xa = rows[e, i, part], rows[e, k, part], zero
                    for p in range(len(x)):
                        xa += x[p] * a[p]
                    gramian[i, k] += xa
    for i in range(K):
        for j in range(i):
            gramian[i, j] = gramian[j, i]
