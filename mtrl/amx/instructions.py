"""Matrices that a processor multiplies whole: Intel's AMX, for kernels to call.

It has eight registers of 16 rows of 64 bytes, tiles. One instruction multiplies a tile of 16 x 32
numbers of bf16 with one of 32 x 16 and adds the product, in float32, to a third. Of the second
factor, two numbers that follow each other in a column lie side by side (Intel, "Intel Architecture
Instruction Set Extensions", chapter 3). Here two tiles of each factor make four of the product, a
block: each that was read serves twice.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils
from numpy.typing import NDArray

from .. import tiles
from ..compiler import generated

SIDE = 16
"""Rows of a tile, and numbers of 32 bits, or pairs of bf16, in each."""

BLOCK = 2 * SIDE
"""Rows and columns of a product that grow at once, and numbers of bf16 in a tile's row."""

LINE, TILE = 64, 1024
"""Bytes of a tile's row, and of a tile."""

_BYTE, _INTEGER = ir.IntType(8), ir.IntType(64)
_ADDRESS, _WORDS = _BYTE.as_pointer(), ir.VectorType(ir.IntType(32), SIDE)
_PAIRS = [(i, j) for i in range(2) for j in range(2)]


@functools.cache
def available() -> bool:
    """Tell whether kernels may use it: the processor has it, and the system lets this process.

    Kernels must not run before this was asked: only then does the system.
    """
    if not (tiles.takes_bf16() and tiles.has("amx-bf16")):
        return False
    ask = getattr(torch.cpu, "_init_amx", None)  # torch's own, which may go
    return ask is not None and bool(ask())


def _configuration() -> NDArray[np.uint8]:
    """Return what tells the processor that all tiles are full ones."""
    result = np.zeros(64, np.uint8)
    result[0] = 1  # palette
    result[16:32:2] = LINE
    result[48:56] = SIDE
    return result


CONFIGURATION = _configuration()
"""For `begin`."""


def _call(builder: Any, name: str, *arguments: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [each.type for each in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}")
    builder.call(function, arguments)


def _register(number: int) -> Any:
    return ir.Constant(_BYTE, number)


def _after(builder: Any, address: Any, offset: int) -> Any:
    return builder.add(address, ir.Constant(_INTEGER, offset))


@generated()
def begin(builder: Any, kinds: Any, configuration: Any) -> None:
    """Make tiles ready, given `CONFIGURATION`'s address; before that there are none."""
    del kinds
    _call(builder, "ldtilecfg", builder.inttoptr(configuration, _ADDRESS))


@generated()
def end(builder: Any, kinds: Any) -> None:
    """Leave nothing in tiles, which the system would have to keep when it changes tasks."""
    del kinds
    _call(builder, "tilerelease")


@generated()
def multiply_block(
    builder: Any, kinds: Any, left: Any, right: Any, count: Any, out: Any, distance: Any
) -> None:
    """``multiply_block(left, right, count, out, distance)``: write 32 rows of 32 sums of products.

    `left` is the address of two tiles of the left factor, one below the other, then the two to
    their right, and so on, `count` times two; `right` that of two of the right factor, next to each
    other, then the two below. The first row goes to `out`, the next `distance` bytes further.
    """
    _multiply(builder, kinds, left, right, count, out, distance, adds=False)


@generated()
def add_block(
    builder: Any, kinds: Any, left: Any, right: Any, count: Any, out: Any, distance: Any
) -> None:
    """As `multiply_block`, but add to what is there."""
    _multiply(builder, kinds, left, right, count, out, distance, adds=True)


def _multiply(
    builder: Any,
    kinds: Any,
    left: Any,
    right: Any,
    count: Any,
    out: Any,
    distance: Any,
    *,
    adds: bool,
) -> None:
    del kinds
    places = []
    for i, j in _PAIRS:
        row = builder.add(out, builder.mul(distance, ir.Constant(_INTEGER, SIDE * i)))
        places.append(builder.inttoptr(_after(builder, row, LINE * j), _ADDRESS))
    for register, place in enumerate(places):
        if adds:
            _call(builder, "tileloadd64", _register(register), place, distance)
        else:
            _call(builder, "tilezero", _register(register))
    with cgutils.for_range(builder, count) as loop:
        offset = builder.mul(loop.index, ir.Constant(_INTEGER, 2 * TILE))
        for first, register in ((left, 4), (right, 6)):
            for half in range(2):
                address = _after(builder, builder.add(first, offset), TILE * half)
                place, line = builder.inttoptr(address, _ADDRESS), ir.Constant(_INTEGER, LINE)
                _call(builder, "tileloadd64", _register(register + half), place, line)
        for register, (i, j) in enumerate(_PAIRS):
            _call(builder, "tdpbf16ps", *map(_register, (register, 4 + i, 6 + j)))
    for register, place in enumerate(places):
        _call(builder, "tilestored64", _register(register), place, distance)


@generated()
def transpose_tile(builder: Any, kinds: Any, source: Any, target: Any) -> None:
    """Transpose a tile of numbers of 32 bits, or pairs of bf16, to another place or the same."""
    del kinds

    def places(first: Any) -> list[Any]:
        lines = (_after(builder, first, LINE * row) for row in range(SIDE))
        return [builder.inttoptr(line, _WORDS.as_pointer()) for line in lines]

    rows = [builder.load(place) for place in places(source)]
    # Swap ever smaller squares across the diagonal: of 8 rows and columns, of 4, of 2, of 1.
    for step in (8, 4, 2, 1):
        upper = [n if not n & step else SIDE + n - step for n in range(SIDE)]
        lower = [n + step if not n & step else SIDE + n for n in range(SIDE)]
        for row in (row for row in range(SIDE) if not row & step):
            both = rows[row], rows[row + step]
            rows[row], rows[row + step] = (
                builder.shuffle_vector(*both, ir.Constant(_WORDS, order))
                for order in (upper, lower)
            )
    for row, place in zip(rows, places(target), strict=True):
        builder.store(row, place)
