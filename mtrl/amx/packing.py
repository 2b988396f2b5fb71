"""Factors of products, copied into tiles in the order in which they are multiplied.

Blocks of 32 rows of a left factor, or 32 columns of a right one, come after each other; of each the
two tiles for 32 numbers that are multiplied and added, then the two for the next. A right factor's
tiles are those of its transpose, each transposed, where two numbers of bf16 stay together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import activation, bf16, task_row_kernels, tiles
from ..compiler import Compiler
from .instructions import BLOCK, LINE, SIDE, TILE, transpose_tile
from .rows import join_rows, join_weighted_rows, pack_row

SOURCES = (
    Path(__file__).parent,
    *(Path(str(module.__file__)) for module in (activation, bf16, task_row_kernels, tiles)),
)
"""All that kernels here are made of."""

_kernel = Compiler("amx", *SOURCES).vectorised_kernel


@_kernel
def blocks_of(length: int) -> int:
    """Return how many blocks of 32 there are, with one that is not full."""
    return -(-length // BLOCK)


@_kernel
def line_of(row: int) -> int:
    """Return where a block's row lies in its two tiles, in bytes."""
    return row // SIDE * TILE + row % SIDE * LINE


@_kernel
def room_for(count: int) -> NDArray[np.uint32]:
    """Allocate tiles whose rows are lines of the caches."""
    numbers = SIDE * SIDE * count
    room = np.empty(numbers + SIDE, np.uint32)
    first = -(room.ctypes.data // room.itemsize) % SIDE
    return room[first : first + numbers].reshape(count, SIDE, SIDE)


@_kernel
def pack_across(rows: NDArray[Any], start: int, packed: NDArray[np.uint32]) -> None:
    """Write rows as a left factor, which is multiplied along them, zeros behind them.

    The first becomes the factor's row number `start`.
    """
    R, C = rows.shape
    deep = blocks_of(C)
    for r in range(R):
        block, place = (start + r) // BLOCK, (start + r) % BLOCK
        first = packed.ctypes.data + 2 * block * deep * TILE
        first += line_of(place)
        pack_row(rows, rows.ctypes.data + r * rows.strides[0], C, first, 2 * TILE)


@_kernel
def transpose(source: NDArray[np.uint32], target: NDArray[np.uint32]) -> None:
    """Transpose each tile, pairs staying together: a left factor becomes a right one, and back."""
    for n in range(len(source)):
        transpose_tile(source.ctypes.data + n * TILE, target.ctypes.data + n * TILE)


@_kernel
def pack_down(rows: NDArray[Any], packed: NDArray[np.uint32]) -> None:
    """Write rows as a right factor, which is multiplied along columns, zeros around them."""
    C, deep = rows.shape[1], blocks_of(len(rows))
    for r in range(0, deep * BLOCK, 2):
        first, second = _address(rows, r), _address(rows, r + 1)
        out = packed.ctypes.data + r // BLOCK * 2 * TILE + r // 2 % SIDE * LINE
        join_rows(rows, first, second, C, out, 2 * deep * TILE)


@_kernel
def pack_weighted(
    rows: NDArray[Any], weights: NDArray[np.float32], packed: NDArray[np.uint32]
) -> None:
    """As `pack_down`, each row times its weight."""
    (R, C), deep = rows.shape, blocks_of(len(rows))
    for r in range(0, deep * BLOCK, 2):
        first, second = _address(rows, r), _address(rows, r + 1)
        one, other = weights[min(r, R - 1)], weights[min(r + 1, R - 1)]
        out = packed.ctypes.data + r // BLOCK * 2 * TILE + r // 2 % SIDE * LINE
        join_weighted_rows(rows, first, second, one, other, C, out, 2 * deep * TILE)


@_kernel
def _address(rows: NDArray[Any], number: int) -> int:
    """Return where a row lies, or 0 if there are not so many."""
    return rows.ctypes.data + number * rows.strides[0] if number < len(rows) else 0
