"""Kernels of layers whose products go through AMX: there, back, and the tasks' gradients.

Factors are copied into tiles first, blocks of 32 rows or columns after each other, in the order in
which they are multiplied. What a product is for happens to its rows while they are at hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numba import carray
from numpy.typing import NDArray

from . import amx, amx_rows, bf16, task_row_kernels, tiles
from .activation import EPSILON
from .amx import (
    BLOCK,
    LINE,
    SIDE,
    TILE,
    add_block,
    begin,
    end,
    multiply_block,
    transpose_tile,
)
from .amx_rows import (
    activate,
    add_to_row,
    at,
    join_rows,
    join_weighted_rows,
    pack_row,
    pass_back,
    squares_of_row,
    sum_products,
    sums_of_row,
    write_row,
)
from .compiler import Compiler, use_widest_vectors
from .task_row_kernels import add_all_inner_products, sum_columns
from .tiles import LEFT, RIGHT

FEW = 24
"""Up to so many tasks, inner products of their gradients take less time without tiles."""

NEARBY = 256
"""Twos of tiles, half a megabyte, that stay in a core's own caches."""

_EPSILON = np.float32(EPSILON)

_sources = (amx.__file__, amx_rows.__file__, bf16.__file__, task_row_kernels.__file__)
_kernel = Compiler("amx", *map(Path, (__file__, *_sources, tiles.__file__))).vectorised_kernel


@_kernel
def forward(
    configuration: NDArray[np.uint8],
    given: NDArray[Any],
    returned: NDArray[Any],
    addresses: tuple[int, ...],
    sizes: tuple[int, ...],
    norm: bool,
    relu: bool,
) -> None:
    """Write layers' results, and with norm what the way back needs of them, if there is room.

    Args:
        configuration: `mtrl.amx.CONFIGURATION`.
        given: An empty array of the inputs' type.
        returned: The same of the results'.
        addresses: Of inputs, weights, biases, results, normalised rows of bf16, and 1 / their
            deviations; the last two may be 0.
        sizes: E, K, B, I, D, and how many networks there are inputs for and rows of a weight.
        norm: Whether a layer norm follows the biases.
        relu: Whether a ReLU follows.
    """
    use_widest_vectors()
    E, K, B, I, D, own, J = sizes  # noqa: E741
    R, tasks = K * B, K
    inputs = carray(at(addresses[0]), (own, R, I), given.dtype)
    weights = carray(at(addresses[1]), (E, J, D), np.float32)
    bias = carray(at(addresses[2]), (E, D), np.float32)
    result = carray(at(addresses[3]), (E, R, D), returned.dtype)
    kept = carray(at(addresses[4]), (E, R, D), np.uint16)
    inverse = carray(at(addresses[5]), (E, R), np.float32)
    is_kept = addresses[4] != 0
    one, share = np.float32(1), np.float32(1 / D)
    deep, wide = _blocks(I), _blocks(D)
    left, right = _room(2 * deep), _room(2 * deep * wide)
    # Without norm what comes of 32 columns is finished while the next are multiplied.
    values = np.empty((BLOCK, BLOCK * (wide if norm else 2)), np.float32)
    added = np.zeros((tasks if weights.shape[1] > I else 1, BLOCK * wide), np.float32)
    biases = np.empty(BLOCK, np.int64)
    begin(configuration.ctypes.data)
    for e in range(E):
        _pack_down(weights[e, :I], right)
        _add_biases(bias[e], weights[e, I:], added)
        for start in range(0, R, BLOCK):
            stop = min(start + BLOCK, R)
            _pack_across(inputs[e % len(inputs), start:stop], 0, left)
            for r in range(start, stop):
                task = r * tasks // R % len(added)
                biases[r - start] = added.ctypes.data + task * added.strides[0]
            if norm:
                _multiply(left, right, deep, wide, values)
                for r in range(start, stop):
                    row = values.ctypes.data + (r - start) * values.strides[0]
                    mean = add_to_row(row, biases[r - start], D) * share
                    scale = one / np.sqrt(squares_of_row(row, mean, D) * share + _EPSILON)
                    if is_kept:
                        inverse[e, r] = scale
                        out = kept.ctypes.data + e * kept.strides[0] + r * kept.strides[1]
                        write_row(kept, row, mean, scale, D, out, False)
                    out = result.ctypes.data + e * result.strides[0] + r * result.strides[1]
                    write_row(result, row, mean, scale, D, out, relu)
                continue
            for n in range(wide + 1):
                if n < wide:
                    multiply_block(
                        left.ctypes.data,
                        right.ctypes.data + n * deep * 2 * TILE,
                        deep,
                        values.ctypes.data + n % 2 * BLOCK * values.itemsize,
                        values.strides[0],
                    )
                if n == 0:
                    continue
                d = (n - 1) * BLOCK
                first = values.ctypes.data + (n - 1) % 2 * BLOCK * values.itemsize
                out = result.ctypes.data + e * result.strides[0] + start * result.strides[1]
                out += d * result.itemsize
                for r in range(stop - start):
                    activate(
                        result,
                        first + r * values.strides[0],
                        biases[r] + d * added.itemsize,
                        min(BLOCK, D - d),
                        out + r * result.strides[1],
                        relu,
                    )
    end()


@_kernel
def _add_biases(
    bias: NDArray[np.float32], own: NDArray[np.float32], added: NDArray[np.float32]
) -> None:
    """Write what is added to each task's rows: the bias, and a row of the weight if it has one."""
    use_widest_vectors()
    for k in range(len(added)):
        for d in range(len(bias)):
            added[k, d] = bias[d]
        if len(own) > 0:
            row = own[k]
            for d in range(len(bias)):
                added[k, d] += row[d]


@_kernel
def backward(
    configuration: NDArray[np.uint8],
    gradients: NDArray[Any],
    references: NDArray[Any],
    asked: NDArray[Any],
    addresses: tuple[int, ...],
    sizes: tuple[int, ...],
    norm: bool,
    relu: bool,
) -> None:
    """Write gradients of layers' products, their sums, and the gradients of inputs.

    Each of them where there is room. Rows of zeros are not multiplied.

    Args:
        configuration: `mtrl.amx.CONFIGURATION`.
        gradients: An empty array of the type of the results' gradients.
        references: The same of what `forward` has kept.
        asked: The same of the inputs' gradients.
        addresses: Of the results' gradients, of what `forward` has kept of norms or, without one,
            of ReLUs, of 1 / deviations, of weights, of the products' gradients in bf16, or 0, of
            their sums, which are zeros, and of the inputs' gradients.
        sizes: E, K, B, I, or 0 if their gradients are not asked for, D, and rows of a weight.
        norm: Whether a layer norm followed the biases.
        relu: Whether a ReLU followed.
    """
    use_widest_vectors()
    E, K, B, I, D, J = sizes  # noqa: E741
    R, tasks = K * B, K
    gradient = carray(at(addresses[0]), (E, R, D), gradients.dtype)
    reference = carray(at(addresses[1]), (E, R, D), references.dtype)
    inverse = carray(at(addresses[2]), (E, R), np.float32)
    weights = carray(at(addresses[3]), (E, J, D), np.float32)
    errors = carray(at(addresses[4]), (E, R, D), np.uint16)
    sums = carray(at(addresses[5]), (E, K, D), np.float32)
    of_inputs = carray(at(addresses[6]), (E, R, I), asked.dtype)
    is_kept = addresses[4] != 0
    zero, one, share = np.float32(0), np.float32(1), np.float32(1 / D)
    deep, wide = _blocks(D), _blocks(I)
    left, right = _room(2 * deep), _room(2 * deep * wide)
    values, totals = np.empty((BLOCK, 2 * BLOCK), np.float32), np.zeros(2, np.float32)
    places = np.empty(BLOCK, np.int64)
    begin(configuration.ctypes.data)
    for e in range(E):
        if I > 0:
            _pack_across(weights[e, :I], 0, right)
            _transpose(right, right)
        waiting, task, task_ends = 0, -1, 0
        for r in range(R):
            given = gradient.ctypes.data + e * gradient.strides[0] + r * gradient.strides[1]
            along = reference.ctypes.data + e * reference.strides[0] + r * reference.strides[1]
            mean, slope, scale = zero, zero, one
            if norm:
                sums_of_row(gradient, reference, given, along, D, relu, totals.ctypes.data)
                mean, slope, scale = totals[0] * share, totals[1] * share, inverse[e, r]
            out = errors.ctypes.data + e * errors.strides[0] + r * errors.strides[1]
            if r == task_ends:
                task += 1
                task_ends += R // tasks
            of_task = e * sums.strides[0] + task * sums.strides[1]
            counts = pass_back(
                gradient,
                reference,
                given,
                along,
                D,
                relu,
                mean,
                slope,
                scale,
                left.ctypes.data + waiting // SIDE * TILE + waiting % SIDE * LINE,
                2 * TILE,
                out if is_kept else 0,
                sums.ctypes.data + of_task,
            )
            if I == 0:
                continue
            if counts:
                places[waiting] = r
                waiting += 1
            else:
                out = of_inputs[e, r]
                for i in range(I):
                    out[i] = 0
            if waiting == BLOCK or (r == R - 1 and waiting > 0):
                for n in range(wide + 1):
                    if n < wide:
                        multiply_block(
                            left.ctypes.data,
                            right.ctypes.data + n * deep * 2 * TILE,
                            deep,
                            values.ctypes.data + n % 2 * BLOCK * values.itemsize,
                            values.strides[0],
                        )
                    if n == 0:
                        continue
                    i = (n - 1) * BLOCK
                    first = values.ctypes.data + (n - 1) % 2 * BLOCK * values.itemsize
                    out = of_inputs.ctypes.data + e * of_inputs.strides[0] + i * of_inputs.itemsize
                    for w in range(waiting):
                        write_row(
                            of_inputs,
                            first + w * values.strides[0],
                            zero,
                            one,
                            min(BLOCK, I - i),
                            out + places[w] * of_inputs.strides[1],
                            False,
                        )
                waiting = 0
    end()


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
    inputs = carray(at(addresses[0]), (own, R, I), given.dtype)
    errors = carray(at(addresses[1]), (E, R, D), np.uint16)
    weights = carray(at(addresses[2]), (K,), np.float32)
    result = carray(at(addresses[3]), (E, I, D), np.float32)
    high, wide = _blocks(I), _blocks(D)
    # So many rows at a time that both factors stay in the caches.
    deep = max(1, min(_blocks(R), NEARBY // (high + wide)))
    left, right = _room(2 * deep * high), _room(2 * deep * wide)
    values = np.empty((BLOCK, BLOCK), np.float32)
    factors = np.empty(R, np.float32)
    for r in range(R):
        factors[r] = weights[r // B]
    begin(configuration.ctypes.data)
    for e in range(E):
        for start in range(0, R, BLOCK * deep):
            stop = min(R, start + BLOCK * deep)
            some = 2 * _blocks(stop - start)
            if e < own or stop - start < R:
                _pack_down(inputs[e % own, start:stop], left[: some * high])
                _transpose(left[: some * high], left)
            _pack_weighted(errors[e, start:stop], factors[start:stop], right)
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
    R = K * B
    inputs = carray(at(addresses[0]), (own, R, I), given.dtype)
    errors = carray(at(addresses[1]), (E, R, D), np.uint16)
    deep, high, wide = _blocks(B), _blocks(I), _blocks(D)
    left, right = _room(2 * K * deep * high), _room(2 * K * deep * wide)
    # Of many tasks, blocks are rounded and taken to tiles one by one, two for each that comes from
    # afar.
    at_once = 1 if K <= FEW else min(2, high)
    rows = np.empty((1, K if K <= FEW else 1, BLOCK * BLOCK), np.float32)
    sums = np.empty(LEFT * RIGHT, np.float32)
    room = 2 * _blocks(K) * at_once * BLOCK if K > FEW else 0
    one, other = _room(room), _room(room)
    begin(configuration.ctypes.data)
    for e in range(E):
        for k in range(K):
            of_task = slice(k * B, (k + 1) * B)
            if e < own:
                some = left[2 * k * deep * high : 2 * (k + 1) * deep * high]
                _pack_down(inputs[e, of_task], some)
                _transpose(some, some)
            some = right[2 * k * deep * wide : 2 * (k + 1) * deep * wide]
            _pack_down(errors[e, of_task], some)
        for start in range(0, high, at_once):
            stop = min(start + at_once, high)
            length = 2 * (stop - start) * BLOCK  # tiles of 32 tasks
            for d in range(wide):
                for k in range(K):
                    row = rows.ctypes.data + k % rows.shape[1] * rows.strides[1]
                    place = one.ctypes.data + k // BLOCK * length * TILE
                    place += k % BLOCK // SIDE * TILE + k % SIDE * LINE
                    for i in range(start, stop):
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
                    add_all_inner_products(rows, BLOCK * BLOCK, sums, gramian)
                else:
                    tiles_of_all = _blocks(K) * length
                    _transpose(one[:tiles_of_all], other)
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
    K, deep = len(gramian), len(left) // 2 // _blocks(len(gramian))
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
    R = K * B
    inputs = carray(at(addresses[0]), (own, R, I), given.dtype)
    errors = carray(at(addresses[1]), (E, R, D), np.uint16)
    # A task's rows begin with a tile, so that what a tile sums up to is of one pair of tasks.
    tiles_of_task = -(-B // SIDE)
    count = K * tiles_of_task
    blocks, deep, deep_of_errors = _blocks(SIDE * count), _blocks(I), _blocks(D)
    left, right = _room(2 * blocks * deep), _room(2 * blocks * deep)
    of_errors = _room(2 * blocks * deep_of_errors), _room(2 * blocks * deep_of_errors)
    if B % SIDE:
        of_errors[0][:], left[:] = 0, 0
    products, sums = np.empty((blocks, BLOCK, BLOCK), np.float32), np.empty((2, 2), np.float32)
    of_two = np.empty((BLOCK, BLOCK), np.float32)
    begin(configuration.ctypes.data)
    for e in range(E):
        for k in range(K):
            first, of_task = k * tiles_of_task * SIDE, slice(k * B, (k + 1) * B)
            if e < own:
                _pack_across(inputs[e, of_task], first, left)
            _pack_across(errors[e, of_task], first, of_errors[0])
        if e < own:
            _transpose(left, right)
        _transpose(of_errors[0], of_errors[1])
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
    add_all_inner_products(rows, I, np.empty(LEFT * RIGHT, np.float32), gramian)


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
    add_all_inner_products(sums, D, np.empty(LEFT * RIGHT, np.float32), gramian)
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


@_kernel
def _blocks(length: int) -> int:
    return -(-length // BLOCK)


@_kernel
def _room(count: int) -> NDArray[np.uint32]:
    """Allocate tiles whose rows are lines of the caches."""
    numbers = SIDE * SIDE * count
    room = np.empty(numbers + SIDE, np.uint32)
    first = -(room.ctypes.data // room.itemsize) % SIDE
    return room[first : first + numbers].reshape(count, SIDE, SIDE)


@_kernel
def _multiply(
    left: NDArray[np.uint32],
    right: NDArray[np.uint32],
    deep: int,
    wide: int,
    out: NDArray[np.float32],
) -> None:
    """Write 32 rows of a product."""
    for n in range(wide):
        multiply_block(
            left.ctypes.data,
            right.ctypes.data + n * deep * 2 * TILE,
            deep,
            out.ctypes.data + n * BLOCK * out.itemsize,
            out.strides[0],
        )


@_kernel
def _pack_across(rows: NDArray[Any], start: int, packed: NDArray[np.uint32]) -> None:
    """Write rows as a left factor, which is multiplied along them, zeros behind them.

    The first becomes the factor's row number `start`.
    """
    R, C = rows.shape
    deep = _blocks(C)
    for r in range(R):
        block, place = (start + r) // BLOCK, (start + r) % BLOCK
        first = packed.ctypes.data + 2 * block * deep * TILE
        first += place // SIDE * TILE + place % SIDE * LINE
        pack_row(rows, rows.ctypes.data + r * rows.strides[0], C, first, 2 * TILE)


@_kernel
def _transpose(source: NDArray[np.uint32], target: NDArray[np.uint32]) -> None:
    """Transpose each tile, pairs staying together: a left factor becomes a right one, and back."""
    for n in range(len(source)):
        transpose_tile(source.ctypes.data + n * TILE, target.ctypes.data + n * TILE)


@_kernel
def _pack_down(rows: NDArray[Any], packed: NDArray[np.uint32]) -> None:
    """Write rows as a right factor, which is multiplied along columns, zeros around them."""
    C, deep = rows.shape[1], _blocks(len(rows))
    for r in range(0, deep * BLOCK, 2):
        first, second = _address(rows, r), _address(rows, r + 1)
        out = packed.ctypes.data + r // BLOCK * 2 * TILE + r // 2 % SIDE * LINE
        join_rows(rows, first, second, C, out, 2 * deep * TILE)


@_kernel
def _pack_weighted(
    rows: NDArray[Any], weights: NDArray[np.float32], packed: NDArray[np.uint32]
) -> None:
    """As `_pack_down`, each row times its weight."""
    (R, C), deep = rows.shape, _blocks(len(rows))
    for r in range(0, deep * BLOCK, 2):
        first, second = _address(rows, r), _address(rows, r + 1)
        one, other = weights[min(r, R - 1)], weights[min(r + 1, R - 1)]
        out = packed.ctypes.data + r // BLOCK * 2 * TILE + r // 2 % SIDE * LINE
        join_weighted_rows(rows, first, second, one, other, C, out, 2 * deep * TILE)


@_kernel
def _address(rows: NDArray[Any], number: int) -> int:
    """Return where a row lies, or 0 if there are not so many."""
    return rows.ctypes.data + number * rows.strides[0] if number < len(rows) else 0
