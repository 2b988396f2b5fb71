"""Kernel of a network's layers: a block of rows goes through one after the other.

What follows a product happens to its rows while they are at hand, and what comes of it is the next
one's left factor at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray
from numpy.typing import NDArray

from ..activation import EPSILON
from ..compiler import Compiler, use_widest_vectors
from .instructions import BLOCK, TILE, begin, end, multiply_block
from .packing import SOURCES, blocks_of, line_of, pack_across, pack_down, room_for
from .rows import activate, add_to_row, at, squares_of_row, times_column, write_row

NEARBY = 1 << 20
"""Bytes of weights that stay in a core's own caches beside what passes through."""

AT_ONCE = 10
"""Blocks of rows that take a layer before the first of them takes the next, where weights are more
than `NEARBY`."""

ROWS, COLUMNS, NORM, RELU, WEIGHT, BIAS, RESULTS, NORMALISED, INVERSES = range(9)
"""Of a layer: rows of its weight, of which those after the inputs' are the tasks' own; columns;
whether a layer norm follows the biases; whether a ReLU follows; and addresses: of the weight, the
bias, the results, in bf16 before the last layer, and, with norm, of normalised rows in bf16 and 1 /
their deviations. The last three may be 0, but for the last results."""

_EPSILON = np.float32(EPSILON)

_kernel = Compiler("amx", *SOURCES).vectorised_kernel


@_kernel
def forward(
    configuration: NDArray[np.uint8],
    given: NDArray[Any],
    returned: NDArray[Any],
    address: int,
    sizes: tuple[int, ...],
    numbers: NDArray[np.int64],
) -> None:
    """Take E networks' inputs through their layers.

    Tiles of bf16 are multiplied; but for a last layer of one column, whose weights are not rounded.

    Args:
        configuration: `mtrl.amx.instructions.CONFIGURATION`.
        given: An empty array of the inputs' type.
        returned: The same of the last results'.
        address: Of the inputs.
        sizes: E, K, B, I, and how many networks there are inputs for.
        numbers: `ROWS`, `COLUMNS`, ... of each layer.
    """
    use_widest_vectors()
    E, K, B, I, own = sizes  # noqa: E741
    layers = numbers.reshape(-1, INVERSES + 1)
    R, L = K * B, len(layers)
    inputs = carray(at(address), (own, R, I), given.dtype)
    between = np.empty(0, np.uint16)
    # Of each layer, where its weights begin among tiles and what is added to rows among summands,
    # and how many inputs it has.
    firsts, begins, lengths = np.empty(L, np.int64), np.empty(L, np.int64), np.empty(L, np.int64)
    count, of_summands, longest, length = 0, 0, 0, I
    for n in range(L):
        firsts[n], begins[n], lengths[n] = count, of_summands, length
        if layers[n, COLUMNS] > 1:
            count += 2 * blocks_of(length) * blocks_of(layers[n, COLUMNS])
        of_summands += K if layers[n, ROWS] > length else 1
        longest = max(longest, blocks_of(length), blocks_of(layers[n, COLUMNS]))
        length = layers[n, COLUMNS]
    at_once = 1 if count * TILE <= NEARBY else AT_ONCE
    right = room_for(count)
    one, other = room_for(2 * longest * at_once), room_for(2 * longest * at_once)
    values = np.empty((BLOCK, BLOCK * longest), np.float32)
    summands = np.zeros((of_summands, BLOCK * longest), np.float32)
    added = np.empty(BLOCK, np.int64)
    begin(configuration.ctypes.data)
    for e in range(E):
        for n in range(L):
            J, D = layers[n, ROWS], layers[n, COLUMNS]
            weights = carray(at(layers[n, WEIGHT]), (E, J, D), np.float32)[e]
            bias = carray(at(layers[n, BIAS]), (E, D), np.float32)[e]
            if D > 1:
                pack_down(weights[: lengths[n]], right[firsts[n] :])
            own_rows = weights[lengths[n] : lengths[n] + K]
            _add_biases(bias, own_rows, summands[begins[n] :])
        for start in range(0, R, BLOCK * at_once):
            stop = min(start + BLOCK * at_once, R)
            source, target = one.ctypes.data, other.ctypes.data
            for first in range(start, stop, BLOCK):
                block = (first - start) // BLOCK * 2 * longest
                pack_across(inputs[e % own, first : min(first + BLOCK, stop)], 0, one[block:])
            for n in range(L):
                layer, deep = layers[n], blocks_of(lengths[n])
                weight = right.ctypes.data + firsts[n] * TILE
                for first in range(start, stop, BLOCK):
                    block = (first - start) // BLOCK * 2 * longest * TILE
                    height = min(BLOCK, stop - first)
                    k, b = first // B, first % B
                    for r in range(height):
                        row = begins[n] + (k if layer[ROWS] > lengths[n] else 0)
                        added[r] = summands.ctypes.data + row * summands.strides[0]
                        b += 1
                        if b == B:
                            k, b = k + 1, 0
                    place, left, out = e * R + first, source + block, target + block
                    if layer[COLUMNS] == 1:
                        column = layer[WEIGHT] + e * layer[ROWS] * 4
                        results = carray(at(layer[RESULTS] + place * 4), (height,), np.float32)
                        for r in range(height):
                            row = left + line_of(r)
                            results[r] = times_column(row, 2 * TILE, column, lengths[n])
                            results[r] += carray(at(added[r]), (1,), np.float32)[0]
                    elif n == L - 1:
                        _apply(
                            returned, layer, left, weight, deep, added[:height], values, place, 0
                        )
                    else:
                        _apply(
                            between, layer, left, weight, deep, added[:height], values, place, out
                        )
                source, target = target, source
    end()


@_kernel
def _add_biases(
    bias: NDArray[np.float32], own: NDArray[np.float32], summands: NDArray[np.float32]
) -> None:
    """Write what is added to each task's rows: the bias, and a row of the weight if it has one."""
    use_widest_vectors()
    for k in range(max(1, len(own))):
        for d in range(len(bias)):
            summands[k, d] = bias[d]
        if len(own) > 0:
            row = own[k]
            for d in range(len(bias)):
                summands[k, d] += row[d]


@_kernel
def _apply(
    kind: NDArray[Any],
    layer: NDArray[np.int64],
    left: int,
    right: int,
    deep: int,
    added: NDArray[np.int64],
    values: NDArray[np.float32],
    place: int,
    packed: int,
) -> None:
    """Take a block of rows through a layer.

    Args:
        kind: An empty array of the results' type.
        layer: Its numbers.
        left: The rows' tiles.
        right: The weight's.
        deep: Blocks of the inputs.
        added: Addresses of what is added to each row.
        values: Room for the product.
        place: The first row's among all rows.
        packed: Where the next layer's left factor begins, or 0.
    """
    D, norm, relu = layer[COLUMNS], layer[NORM] != 0, layer[RELU] != 0
    wide, distance = blocks_of(D), D * kind.itemsize
    has_results, first = layer[RESULTS] != 0, layer[RESULTS] + place * distance
    if norm:
        share, between = np.float32(1 / D), np.empty(0, np.uint16)
        for n in range(wide):
            multiply(left, right, n, deep, values, n)
        for r in range(len(added)):
            row = values.ctypes.data + r * values.strides[0]
            mean = add_to_row(row, added[r], D) * share
            scale = np.float32(1) / np.sqrt(squares_of_row(row, mean, D) * share + _EPSILON)
            if layer[NORMALISED] != 0:
                carray(at(layer[INVERSES]), (place + r + 1,), np.float32)[place + r] = scale
                out = layer[NORMALISED] + (place + r) * D * 2
                write_row(between, row, mean, scale, D, out, 0, 0, False)
            out = first + r * distance if has_results else 0
            tile_row = packed + line_of(r) if packed != 0 else 0
            write_row(kind, row, mean, scale, D, out, tile_row, 2 * TILE, relu)
        return
    # What comes of 32 columns is finished while the next are multiplied.
    for n in range(wide + 1):
        if n < wide:
            multiply(left, right, n, deep, values, n % 2)
        if n == 0:
            continue
        d = (n - 1) * BLOCK
        row = values.ctypes.data + (n - 1) % 2 * BLOCK * values.itemsize
        tiles = packed + (n - 1) * 2 * TILE
        for r in range(len(added)):
            out = first + r * distance + d * kind.itemsize if has_results else 0
            tile_row = tiles + line_of(r) if packed != 0 else 0
            summands = added[r] + d * values.itemsize
            activate(kind, row, summands, min(BLOCK, D - d), out, tile_row, relu)
            row += values.strides[0]


@_kernel
def multiply(
    left: int, right: int, n: int, deep: int, values: NDArray[np.float32], place: int
) -> None:
    """Write the columns of a product from 32 `n` on to those of `values` from 32 `place` on."""
    multiply_block(
        left,
        right + n * deep * 2 * TILE,
        deep,
        values.ctypes.data + place * BLOCK * values.itemsize,
        values.strides[0],
    )
