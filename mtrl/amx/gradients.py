"""Kernels of tasks' gradients: their inner products and weighted sums, from inputs and errors.

A layer's inputs and the gradients of its products, the errors, are given for all tasks' rows, one
task after the other; a task's gradient is ``inputs.T @ errors`` of its rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray
from numpy.typing import NDArray

from ..compiler import Compiler, use_widest_vectors
from ..task_row_kernels import add_all_inner_products, sum_columns
from ..tiles import LEFT, RIGHT
from .instructions import BLOCK, SIDE, TILE, add_block, begin, end, multiply_block
from .packing import (
    SOURCES,
    blocks_of,
    line_of,
    pack_across,
    pack_down,
    pack_weighted,
    room_for,
    transpose,
)
from .rows import at, pack_row, sum_products

FEW = 24
"""Up to so many tasks, inner products of their gradients take less time without tiles."""

FACTORS_NEARBY = 256
"""Twos of tiles of factors, half a megabyte, that stay in a core's own caches beside the rest."""

_kernel = Compiler("amx", *SOURCES).vectorised_kernel


@_kernel
def weighted_product(
    configuration: NDArray[np.uint8],
    given: NDArray[Any],
    addresses: tuple[int, ...],
    sizes: tuple[int, ...],
) -> None:
    """Write the weighted sum of the tasks' gradients."""
    use_widest_vectors()
    E, K, B, I, D, own = sizes  # noqa: E741
    R = K * B
    inputs, errors = _inputs_and_errors(given, addresses, sizes)
    weights = carray(at(addresses[2]), (K,), np.float32)
    result = carray(at(addresses[3]), (E, I, D), np.float32)
    high, wide = blocks_of(I), blocks_of(D)
    # So many rows at a time that both factors stay in the caches.
    deep = max(1, min(blocks_of(R), FACTORS_NEARBY // (high + wide)))
    left, right = room_for(2 * deep * high), room_for(2 * deep * wide)
    values = np.empty((BLOCK, BLOCK), np.float32)
    factors = np.empty(R, np.float32)
    for r in range(R):
        factors[r] = weights[r // B]
    begin(configuration.ctypes.data)
    for e in range(E):
        for start in range(0, R, BLOCK * deep):
            stop = min(R, start + BLOCK * deep)
            some = 2 * blocks_of(stop - start)
            if e < own or stop - start < R:
                pack_down(inputs[e % own, start:stop], left[: some * high])
                transpose(left[: some * high], left)
            pack_weighted(errors[e, start:stop], factors[start:stop], right)
            for i in range(high):
                for d in range(wide):
                    from_left = left.ctypes.data + i * some * TILE
                    from_right = right.ctypes.data + d * some * TILE
                    first = result.ctypes.data + e * result.strides[0]
                    first += i * BLOCK * result.strides[1] + d * BLOCK * result.itemsize
                    if BLOCK * (i + 1) > I or BLOCK * (d + 1) > D:
                        multiply_block(
                            from_left,
                            from_right,
                            some // 2,
                            values.ctypes.data,
                            values.strides[0],
                        )
                        _write_part(values, start > 0, result[e, BLOCK * i :, BLOCK * d :])
                    elif start > 0:
                        add_block(from_left, from_right, some // 2, first, result.strides[1])
                    else:
                        multiply_block(from_left, from_right, some // 2, first, result.strides[1])
    end()


@_kernel
def _inputs_and_errors(
    given: NDArray[Any], addresses: tuple[int, ...], sizes: tuple[int, ...]
) -> tuple[NDArray[Any], NDArray[np.uint16]]:
    """Return what the first two addresses are of: `own` sets of inputs, and E of errors in bf16."""
    E, K, B, I, D, own = sizes  # noqa: E741
    inputs = carray(at(addresses[0]), (own, K * B, I), given.dtype)
    return inputs, carray(at(addresses[1]), (E, K * B, D), np.uint16)


@_kernel
def _write_part(block: NDArray[np.float32], adds: bool, out: NDArray[np.float32]) -> None:
    """Write or add as much of a block as there is room for."""
    use_widest_vectors()
    for i in range(min(BLOCK, out.shape[0])):
        row, source = out[i], block[i]
        for d in range(min(BLOCK, out.shape[1])):
            row[d] = source[d] + (row[d] if adds else np.float32(0))


@_kernel
def add_gramian_of_rows(
    configuration: NDArray[np.uint8],
    given: NDArray[Any],
    addresses: tuple[int, ...],
    sizes: tuple[int, ...],
    gramian: NDArray[np.float64],
) -> None:
    """Add the inner products of the tasks' gradients, a block of each multiplied out at a time."""
    use_widest_vectors()
    E, K, B, I, D, own = sizes  # noqa: E741
    inputs, errors = _inputs_and_errors(given, addresses, sizes)
    deep, high, wide = blocks_of(B), blocks_of(I), blocks_of(D)
    left, right = room_for(2 * K * deep * high), room_for(2 * K * deep * wide)
    # Two blocks for each of errors, which come from afar. Of many tasks, they are rounded and taken
    # to tiles one by one.
    at_once = min(2, high)
    rows = np.empty(
        (1, K, at_once * BLOCK * BLOCK) if K <= FEW else (1, 1, BLOCK * BLOCK), np.float32
    )
    sums = np.empty(LEFT * RIGHT, np.float32)
    room = 2 * blocks_of(K) * at_once * BLOCK if K > FEW else 0
    one, other = room_for(room), room_for(room)
    begin(configuration.ctypes.data)
    for e in range(E):
        for k in range(K):
            of_task = slice(k * B, (k + 1) * B)
            if e < own:
                some = left[2 * k * deep * high : 2 * (k + 1) * deep * high]
                pack_down(inputs[e, of_task], some)
                transpose(some, some)
            some = right[2 * k * deep * wide : 2 * (k + 1) * deep * wide]
            pack_down(errors[e, of_task], some)
        for start in range(0, high, at_once):
            stop = min(start + at_once, high)
            length = 2 * (stop - start) * BLOCK  # tiles of 32 tasks
            for d in range(wide):
                for k in range(K):
                    place = one.ctypes.data + k // BLOCK * length * TILE
                    place += line_of(k % BLOCK)
                    for i in range(start, stop):
                        part = (i - start) * BLOCK * BLOCK * rows.itemsize
                        offset = k * rows.strides[1] + part if K <= FEW else 0
                        row = rows.ctypes.data + offset
                        multiply_block(
                            left.ctypes.data + (k * high + i) * deep * 2 * TILE,
                            right.ctypes.data + (k * wide + d) * deep * 2 * TILE,
                            deep,
                            row,
                            BLOCK * rows.itemsize,
                        )
                        if K > FEW:
                            first = place + (i - start) * 2 * BLOCK * TILE
                            pack_row(rows, row, BLOCK * BLOCK, first, 2 * TILE)
                if K <= FEW:
                    add_all_inner_products(rows, (stop - start) * BLOCK * BLOCK, sums, gramian)
                else:
                    tiles_of_all = blocks_of(K) * length
                    transpose(one[:tiles_of_all], other)
                    _add_products(one[:tiles_of_all], other, rows[0, 0], gramian)
    end()


@_kernel
def _add_products(
    left: NDArray[np.uint32],
    right: NDArray[np.uint32],
    room: NDArray[np.float32],
    gramian: NDArray[np.float64],
) -> None:
    """Add a product that is symmetric, on and above its diagonal."""
    use_widest_vectors()
    K, deep = len(gramian), len(left) // 2 // blocks_of(len(gramian))
    products = room.reshape(BLOCK, BLOCK)
    for i in range(0, K, BLOCK):
        for j in range(i, K, BLOCK):
            multiply_block(
                left.ctypes.data + i // BLOCK * deep * 2 * TILE,
                right.ctypes.data + j // BLOCK * deep * 2 * TILE,
                deep,
                products.ctypes.data,
                products.strides[0],
            )
            for k in range(i, min(i + BLOCK, K)):
                out, row = gramian[k], products[k - i]
                for n in range(max(j, k), min(j + BLOCK, K)):
                    out[n] += row[n - j]


@_kernel
def add_gramian_of_factors(
    configuration: NDArray[np.uint8],
    given: NDArray[Any],
    addresses: tuple[int, ...],
    sizes: tuple[int, ...],
    gramian: NDArray[np.float64],
) -> None:
    """Add the inner products of the tasks' gradients, from those of inputs and of errors."""
    use_widest_vectors()
    E, K, B, I, D, own = sizes  # noqa: E741
    inputs, errors = _inputs_and_errors(given, addresses, sizes)
    # A task's rows begin with a tile, so that what a tile sums up to is of one pair of tasks.
    tiles_of_task = -(-B // SIDE)
    count = K * tiles_of_task
    blocks, deep, deep_of_errors = blocks_of(SIDE * count), blocks_of(I), blocks_of(D)
    left, right = room_for(2 * blocks * deep), room_for(2 * blocks * deep)
    of_errors = room_for(2 * blocks * deep_of_errors), room_for(2 * blocks * deep_of_errors)
    if B % SIDE:
        of_errors[0][:], left[:] = 0, 0
    products, sums = np.empty((blocks, BLOCK, BLOCK), np.float32), np.empty((2, 2), np.float32)
    of_two = np.empty((BLOCK, BLOCK), np.float32)
    begin(configuration.ctypes.data)
    for e in range(E):
        for k in range(K):
            first, of_task = k * tiles_of_task * SIDE, slice(k * B, (k + 1) * B)
            if e < own:
                pack_across(inputs[e, of_task], first, left)
            pack_across(errors[e, of_task], first, of_errors[0])
        if e < own:
            transpose(left, right)
        transpose(of_errors[0], of_errors[1])
        for i in range(blocks):
            # One left block after the other stays in the innermost cache; two would not.
            for j in range(i, blocks):
                multiply_block(
                    left.ctypes.data + i * deep * 2 * TILE,
                    right.ctypes.data + j * deep * 2 * TILE,
                    deep,
                    products.ctypes.data + j * products.strides[0],
                    products.strides[1],
                )
            for j in range(i, blocks):
                multiply_block(
                    of_errors[0].ctypes.data + i * deep_of_errors * 2 * TILE,
                    of_errors[1].ctypes.data + j * deep_of_errors * 2 * TILE,
                    deep_of_errors,
                    of_two.ctypes.data,
                    of_two.strides[0],
                )
                sum_products(
                    products.ctypes.data + j * products.strides[0],
                    of_two.ctypes.data,
                    sums.ctypes.data,
                )
                for a in range(2 * i, min(2 * i + 2, count)):
                    for b in range(max(2 * j, a), min(2 * j + 2, count)):
                        one, other = a // tiles_of_task, b // tiles_of_task
                        total = sums[a - 2 * i, b - 2 * j]
                        gramian[one, other] += total * (2 if one == other and a != b else 1)
    end()


@_kernel
def add_gramian_of_columns(
    given: NDArray[Any],
    addresses: tuple[int, ...],
    sizes: tuple[int, ...],
    gramian: NDArray[np.float64],
) -> None:
    """Add the inner products of the tasks' gradients, where errors are one column of float32."""
    E, K, B, I, own = sizes  # noqa: E741
    inputs = carray(at(addresses[0]), (own, K, B, I), given.dtype)
    errors = carray(at(addresses[1]), (E, K, B, 1), np.float32)
    rows = np.empty((E, K, I), np.float32)
    for e in range(E):
        sum_columns(inputs[e % own], errors[e], rows[e])
    add_all_inner_products(rows, I, np.empty(0, np.float32), gramian)


@_kernel
def weighted_columns(
    given: NDArray[Any],
    addresses: tuple[int, ...],
    sizes: tuple[int, ...],
) -> None:
    """Write the weighted sum of the tasks' gradients, where errors are one column of float32."""
    use_widest_vectors()
    E, K, B, I, own = sizes  # noqa: E741
    inputs = carray(at(addresses[0]), (own, 1, K * B, I), given.dtype)
    errors = carray(at(addresses[1]), (E, K, B), np.float32)
    weights = carray(at(addresses[2]), (K,), np.float32)
    result = carray(at(addresses[3]), (E, 1, I), np.float32)
    scaled = np.empty((1, K * B, 1), np.float32)
    for e in range(E):
        for k in range(K):
            for b in range(B):
                scaled[0, k * B + b, 0] = weights[k] * errors[e, k, b]
        sum_columns(inputs[e % own], scaled, result[e])


@_kernel
def add_gramian_of_sums(
    address: int, sizes: tuple[int, ...], own: bool, gramian: NDArray[np.float64]
) -> None:
    """Add the inner products of the biases' gradients, and of rows that are each task's own."""
    use_widest_vectors()
    sums = carray(at(address), sizes, np.float32)
    E, K, D = sizes
    add_all_inner_products(sums, D, np.empty(0, np.float32), gramian)
    if own:
        for e in range(E):
            for k in range(K):
                row, total = sums[e, k], np.float32(0)
                for d in range(D):
                    total += row[d] * row[d]
                gramian[k, k] += total


@_kernel
def write_gramian(gramian: NDArray[np.float64], address: int) -> None:
    """Write it, as float32, from what is on and above its diagonal."""
    K = len(gramian)
    result = carray(at(address), (K, K), np.float32)
    for k in range(K):
        for other in range(k, K):
            result[k, other] = gramian[k, other]
            result[other, k] = gramian[k, other]
