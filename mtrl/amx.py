"""Matrices that a processor multiplies whole: Intel's AMX, for kernels to call.

It has eight registers of 16 rows of 64 bytes, tiles. One instruction multiplies a tile of 16 x 32
numbers of bf16 with one of 32 x 16 and adds the product, in float32, to a third. Of the second
factor, two numbers that follow each other in a column lie side by side (Intel, "Intel Architecture
Instruction Set Extensions", chapter 3). Here two tiles of each factor make four of the product, a
block: each that was read serves twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from . import tiles

SIDE = 16
"""Rows of a tile, and numbers of 32 bits, or pairs of bf16, in each."""

BLOCK = 2 * SIDE
"""Rows and columns of a product that grow at once, and numbers of bf16 in a tile's row."""

_ROW, _TILE = 64, 1024  # bytes
_BYTE, _INTEGER, _FLOAT = ir.IntType(8), ir.IntType(64), ir.FloatType()
_ADDRESS = _BYTE.as_pointer()


@functools.cache
def available() -> bool:
    """Tell whether kernels may use it: the processor has it, and the system lets this process."""
    has_instructions = tiles.takes_bf16() and tiles.has("amx-bf16")
    return has_instructions and bool(torch.cpu._init_amx())


def _configuration() -> NDArray[np.uint8]:
    """Return what tells the processor that all tiles are full ones."""
    result = np.zeros(64, np.uint8)
    result[0] = 1  # palette
    result[16:32:2] = _ROW
    result[48:56] = SIDE
    return result


CONFIGURATION = _configuration()
"""For `begin`."""


def _call(builder: Any, name: str, *arguments: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [each.type for each in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), arguments)


def _register(number: int) -> Any:
    return ir.Constant(_BYTE, number)


def _after(builder: Any, address: Any, offset: Any) -> Any:
    offset = ir.Constant(_INTEGER, offset) if isinstance(offset, int) else offset
    return builder.add(address, offset)


def _begin(typing_context: Any, address: Any) -> Any:
    del typing_context, address

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature
        _call(builder, "ldtilecfg", builder.inttoptr(arguments[0], _ADDRESS))
        return context.get_dummy_value()

    return types.void(types.intp), generate


def _end(typing_context: Any) -> Any:
    del typing_context

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature, arguments
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


def _generate_product(
    context: Any, builder: Any, signature: Any, arguments: Any, *, adds: bool
) -> Any:
    del signature
    left, right, count, out, distance = arguments
    pairs = [(i, j) for i in range(2) for j in range(2)]
    side = ir.Constant(_INTEGER, _ROW)
    places = []
    for i, j in pairs:
        address = _after(builder, out, builder.mul(distance, ir.Constant(_INTEGER, SIDE * i)))
        places.append(builder.inttoptr(_after(builder, address, _ROW * j), _ADDRESS))
        if adds:
            _call(builder, "tileloadd64", _register(2 * i + j), places[-1], distance)
        else:
            _call(builder, "tilezero", _register(2 * i + j))
    with cgutils.for_range(builder, count) as loop:
        offset = builder.mul(loop.index, ir.Constant(_INTEGER, 2 * _TILE))
        for first, register in ((left, 4), (right, 6)):
            for half in range(2):
                address = _after(builder, _after(builder, first, offset), _TILE * half)
                pointer = builder.inttoptr(address, _ADDRESS)
                _call(builder, "tileloadd64", _register(register + half), pointer, side)
        for i, j in pairs:
            _call(builder, "tdpbf16ps", *map(_register, (2 * i + j, 4 + i, 6 + j)))
    for register, place in enumerate(places):
        _call(builder, "tilestored64", _register(register), place, distance)
    return context.get_dummy_value()


def _product(tc: Any, left: Any, right: Any, count: Any, out: Any, distance: Any) -> Any:
    del tc, left, right, count, out, distance
    return types.void(*[types.intp] * 5), functools.partial(_generate_product, adds=False)


def _addition(tc: Any, left: Any, right: Any, count: Any, out: Any, distance: Any) -> Any:
    del tc, left, right, count, out, distance
    return types.void(*[types.intp] * 5), functools.partial(_generate_product, adds=True)


def _generate_transposed(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    del signature
    vector = ir.VectorType(ir.IntType(32), SIDE)
    sources, targets = (
        [
            builder.inttoptr(_after(builder, first, _ROW * row), vector.as_pointer())
            for row in range(SIDE)
        ]
        for first in arguments
    )
    rows = [builder.load(source) for source in sources]
    # Swap ever smaller squares across the diagonal: of 8 rows and columns, of 4, of 2, of 1.
    for step in (8, 4, 2, 1):
        numbers = range(SIDE)
        upper = [n if not n & step else SIDE + n - step for n in numbers]
        lower = [n + step if not n & step else SIDE + n for n in numbers]
        for row in numbers:
            if not row & step:
                two = rows[row], rows[row + step]
                rows[row], rows[row + step] = (
                    builder.shuffle_vector(*two, ir.Constant(ir.VectorType(ir.IntType(32), 16), m))
                    for m in (upper, lower)
                )
    for target, row in zip(targets, rows, strict=True):
        builder.store(row, target)
    return context.get_dummy_value()


def _transpose(typing_context: Any, source: Any, target: Any) -> Any:
    del typing_context, source, target
    return types.void(types.intp, types.intp), _generate_transposed


_intrinsic = (lambda function: function) if numba.config.DISABLE_JIT else intrinsic

begin: Callable[[int], None] = _intrinsic(_begin)
"""Make tiles ready, given `CONFIGURATION`'s address; before that there are none."""

end: Callable[[], None] = _intrinsic(_end)
"""Leave nothing in tiles, which the system would have to keep when it changes tasks."""

multiply_block: Callable[[int, int, int, int, int], None] = _intrinsic(_product)
"""``multiply_block(left, right, count, out, distance)``: write 32 rows of 32 sums of products.

Args:
    left: The address of two tiles of the left factor, one below the other, then the two to their
        right, and so on.
    right: The address of two tiles of the right one, next to each other, then the two below.
    count: How many twos there are.
    out, distance: Where the first row goes, and bytes from there to the next.
"""

add_block: Callable[[int, int, int, int, int], None] = _intrinsic(_addition)
"""As `multiply_block`, but add to what is there."""

transpose_tile: Callable[[int, int], None] = _intrinsic(_transpose)
"""Transpose a tile of numbers of 32 bits, or pairs of bf16, from one address to another or same."""
