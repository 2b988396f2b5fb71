"""Kernels of `mtrl.task_rows`: products and inner products in tiles, and weighted sums of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import bf16, tiles
from .bf16 import read
from .compiler import Compiler, use_widest_vectors
from .tiles import (
    LEFT,
    RIGHT,
    ROWS,
    VECTOR,
    VECTORS,
    inner_products,
    inner_products_with_themselves,
    joined,
    multiply_tile,
)

AT_A_TIME = 8192
"""About so many numbers of each row of J are multiplied out before their inner products are taken:
those of some ten tasks are in a core's own caches then."""

BYTES_OF_MANY = 4096
"""The same of many rows: those of a tile are in the innermost cache then."""

MANY = 2 * (LEFT + RIGHT)
"""Rows whose bytes a tile does not meet again before they have left the innermost cache."""

COLUMNS = 1024
"""Of a weighted sum, found at a time: they stay in the innermost cache."""

_kernel = Compiler(
    "task_rows", Path(__file__), Path(bf16.__file__), Path(tiles.__file__)
).vectorised_kernel


@_kernel
def sum_columns(inputs: NDArray[Any], errors: NDArray[Any], rows: NDArray[Any]) -> None:
    """Write the inputs of each task, summed with its errors' one column, to the start of a row."""
    use_widest_vectors()
    tasks, _, I = inputs.shape  # noqa: E741
    for t in range(tasks):
        _weigh_rows(errors[t, :, 0], inputs[t], rows[t, :I])


@_kernel
def _join(given: NDArray[Any], together: int, result: NDArray[Any]) -> None:
    """Write rows as factors of tiles: numbers multiplied together joined, zeros behind each row."""
    use_widest_vectors()
    B, I = given.shape  # noqa: E741
    zero = np.zeros(1, given.dtype)[0]
    for p in range(len(result)):
        first, out = given[together * p], result[p]
        if together * (p + 1) > B:
            for i in range(I):
                out[i] = joined(first[i], zero)
        else:
            second = given[together * (p + 1) - 1]
            for i in range(I):
                out[i] = joined(first[i], second[i])
        for i in range(I, len(out)):
            out[i] = 0


@_kernel
def _at_a_time(rows: NDArray[Any]) -> int:
    """Return how many numbers of each row of J, of so many and such, are in hand at a time."""
    return AT_A_TIME if rows.shape[-2] <= MANY else BYTES_OF_MANY // rows.itemsize


@_kernel
def inputs_at_a_time(rows: NDArray[Any], D: int) -> int:
    """Return from how many inputs they come, whole tiles of them."""
    return max(1, _at_a_time(rows) // D // ROWS) * ROWS


@_kernel
def multiply_in_tiles(
    inputs: NDArray[Any],
    errors: NDArray[Any],
    rows: NDArray[Any],
    distance: int,
    factor: NDArray[Any],
    total: NDArray[Any],
    gramian: NDArray[np.float64],
) -> None:
    """Write J to the start of each row, and add the rows' inner products while they are at hand.

    Args:
        inputs: As of `TaskBlocks`.
        errors: The same.
        rows: Of J; empty if it is not to be kept.
        distance: Numbers from one row to the next of what is multiplied out at a time then.
        factor: Of the type of what a tile multiplies (`joined`).
        total: Of the type of its sums.
        gramian: What is added to.
    """
    use_widest_vectors()
    E, K, B, I = inputs.shape  # noqa: E741
    D = errors.shape[-1]
    size = rows.itemsize
    step = inputs_at_a_time(rows, D)
    together, columns = factor.itemsize // size, VECTORS * VECTOR // total.itemsize
    pairs = -(-B // together)
    joined_inputs = np.empty((K, pairs, I + ROWS - 1), factor.dtype)
    joined_errors = np.empty((K, pairs, D + columns - 1), factor.dtype)
    edge, sums = np.empty((ROWS, columns), rows.dtype), np.empty(LEFT * RIGHT, total.dtype)
    is_kept = rows.shape[2] > 0
    kept = np.empty((0 if is_kept else K, distance), rows.dtype)
    for e in range(E):
        for k in range(K):
            _join(inputs[e, k], together, joined_inputs[k])
            _join(errors[e, k], together, joined_errors[k])
        if is_kept:
            kept = rows[e]
        for start in range(0, I, step):
            stop = min(start + step, I)
            origin = 0 if is_kept else start * D
            for k in range(K):
                row = kept.ctypes.data + k * kept.strides[0] - origin * size
                from_inputs = joined_inputs.ctypes.data + k * joined_inputs.strides[0]
                from_errors = joined_errors.ctypes.data + k * joined_errors.strides[0]
                for d in range(0, D, columns):
                    for i in range(start, stop, ROWS):
                        is_whole = i + ROWS <= stop and d + columns <= D
                        multiply_tile(
                            rows,
                            from_inputs + i * joined_inputs.itemsize,
                            joined_inputs.strides[1],
                            from_errors + d * joined_errors.itemsize,
                            joined_errors.strides[1],
                            joined_inputs.shape[1],
                            row + (i * D + d) * size if is_whole else edge.ctypes.data,
                            D * size if is_whole else edge.strides[0],
                        )
                        if not is_whole:
                            for r in range(min(ROWS, stop - i)):
                                first = (i + r) * D + d - origin
                                out = kept[k, first : first + min(columns, D - d)]
                                for c in range(len(out)):
                                    out[c] = edge[r, c]
            _add_some_inner_products(kept, start * D - origin, stop * D - origin, sums, gramian)


@_kernel
def add_all_inner_products(
    rows: NDArray[Any], length: int, total: NDArray[Any], gramian: NDArray[np.float64]
) -> None:
    """Add the inner products of the starts of rows, on and above the Gramian's diagonal.

    In tiles, whose sums are of the type of `total`.
    """
    use_widest_vectors()
    sums = np.empty(LEFT * RIGHT, total.dtype)
    for e in range(len(rows)):
        for start in range(0, length, _at_a_time(rows)):
            stop = min(start + _at_a_time(rows), length)
            _add_some_inner_products(rows[e], start, stop, sums, gramian)


@_kernel
def _add_some_inner_products(
    rows: NDArray[Any], start: int, stop: int, sums: NDArray[Any], gramian: NDArray[np.float64]
) -> None:
    """Add the inner products of some columns, a tile at a time.

    Where there are not so many rows left, the last stands in for those that are missing, and what
    it yields is left out.
    """
    use_widest_vectors()
    K = len(rows)
    together = VECTOR // rows.itemsize
    even = (stop - start) // together * together
    addresses = np.empty(K + LEFT + RIGHT, np.int64)
    for k in range(len(addresses)):
        row = rows.ctypes.data + min(k, K - 1) * rows.strides[0]
        addresses[k] = row + start * rows.itemsize
    for i in range(0, K, LEFT):
        left = addresses.ctypes.data + i * addresses.itemsize
        for j in range(i, K, RIGHT):
            right = addresses.ctypes.data + j * addresses.itemsize
            if i == j:
                inner_products_with_themselves(rows, left, right, even, sums.ctypes.data)
            else:
                inner_products(rows, left, right, even, sums.ctypes.data)
            for a in range(i, min(i + LEFT, K)):
                for b in range(max(a, j), min(j + RIGHT, K)):
                    total = sums[RIGHT * (a - i) + b - j]
                    for place in range(start + even, stop):
                        total += read(rows[a, place]) * read(rows[b, place])
                    gramian[a, b] += total


@_kernel
def add_squares(rows: NDArray[Any], gramian: NDArray[np.float64]) -> None:
    """Add each row's inner product with itself."""
    use_widest_vectors()
    E, K, D = rows.shape
    for e in range(E):
        for k in range(K):
            row, total = rows[e, k], np.float64(0)
            for d in range(D):
                total += np.float64(row[d]) * np.float64(row[d])
            gramian[k, k] += total


@_kernel
def mirror(gramian: NDArray[np.float64], result: NDArray[Any]) -> None:
    """Write what is on and above the diagonal to both sides of it."""
    K = len(gramian)
    for i in range(K):
        for j in range(i, K):
            result[i, j] = result[j, i] = gramian[i, j]


@_kernel
def weigh(
    weights: NDArray[Any],
    rows: NDArray[Any],
    length: int,
    sums: NDArray[Any],
    of_weight: NDArray[Any],
    of_bias: NDArray[Any],
) -> None:
    """Write the weighted sums of rows and of sums, and behind the former each task's own row."""
    use_widest_vectors()
    E, K, D = sums.shape
    has_own_row = of_weight.shape[1] > length
    for e in range(E):
        _weigh_rows(weights, rows[e], of_weight[e, :length])
        _weigh_rows(weights, sums[e], of_bias[e])
        for k in range(K * has_own_row):
            out, weight = of_weight[e, length + k * D : length + (k + 1) * D], weights[k]
            for d in range(D):
                out[d] = weight * sums[e, k, d]


@_kernel
def _weigh_rows(weights: NDArray[Any], rows: NDArray[Any], result: NDArray[Any]) -> None:
    """Write the weighted sum of the starts of rows, four rows at a time."""
    use_widest_vectors()
    K, length = len(rows), len(result)
    for first in range(0, length, COLUMNS):
        part = slice(first, min(length, first + COLUMNS))
        out = result[part]
        for p in range(len(out)):
            out[p] = 0
        for k in range(0, K // 4 * 4, 4):
            of_w, of_x, of_y, of_z = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
            w, x, y, z = rows[k, part], rows[k + 1, part], rows[k + 2, part], rows[k + 3, part]
            for p in range(len(out)):
                of_two = of_w * read(w[p]) + of_x * read(x[p])
                out[p] += of_two + of_y * read(y[p]) + of_z * read(z[p])
        for k in range(K // 4 * 4, K):
            weight, row = weights[k], rows[k, part]
            for p in range(len(out)):
                out[p] += weight * read(row[p])
