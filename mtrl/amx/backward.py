"""Kernel of a network's layers on the way back, a block of rows through one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray
from numpy.typing import NDArray

from ..compiler import Compiler, use_widest_vectors
from .forward import AT_ONCE, NEARBY, multiply
from .instructions import BLOCK, TILE, begin, end
from .packing import SOURCES, blocks_of, line_of, pack_across, room_for, transpose
from .rows import at, write_row
from .rows_back import pass_back, pass_columns_back, scale_row, sums_of_row

ROWS, COLUMNS, NORM, RELU, WEIGHT, REFERENCE, INVERSES, ERRORS, SUMS = range(9)
"""Of a layer: rows of its weight; columns; whether a layer norm follows the biases; whether a ReLU
follows; and addresses: of the weight, of what was kept of norms or, without one, of ReLUs, of 1 /
deviations, of the products' gradients in bf16, and of their sums over tasks' rows. The last two may
be 0. A last layer of one column has neither norm nor ReLU, and its products' gradients are given.
"""

_kernel = Compiler("amx", *SOURCES).vectorised_kernel


@_kernel
def backward(
    configuration: NDArray[np.uint8],
    gradients: NDArray[Any],
    references: NDArray[Any],
    asked: NDArray[Any],
    addresses: tuple[int, ...],
    sizes: tuple[int, ...],
    numbers: NDArray[np.int64],
) -> None:
    """Write gradients of the layers' products, their sums, and the gradients of inputs.

    Each of them where there is room. A row that is zeros where the way back begins, past what
    follows the last product, or the last but one of a column, is zeros all along: not multiplied.

    Args:
        configuration: `mtrl.amx.instructions.CONFIGURATION`.
        gradients: An empty array of the type of the last results' gradients.
        references: The same of what the last layer has kept.
        asked: The same of the inputs' gradients.
        addresses: Of the last results' gradients, and of the gradients of inputs, or 0.
        sizes: E, K, B, and I, or 0 if the inputs' gradients are not asked for.
        numbers: `ROWS`, `COLUMNS`, ... of each layer.
    """
    use_widest_vectors()
    E, K, B, I = sizes  # noqa: E741
    R, last = K * B, len(numbers) // (SUMS + 1) - 1
    # Arrays that nobody owns: to count who uses one, call by call, takes as long as half a row.
    layers = carray(at(numbers.ctypes.data), (last + 1, SUMS + 1), np.int64)
    floats, shorts = carray(at(0), (0,), np.float32), carray(at(0), (0,), np.uint16)
    given = carray(at(0), (0,), gradients.dtype)
    kept = carray(at(0), (0,), references.dtype)
    totals = np.empty(2, np.float32)
    has_column = layers[last, COLUMNS] == 1
    top = last - 1 if has_column else last
    gradient = carray(at(addresses[0]), (E * R, layers[last, COLUMNS]), gradients.dtype)
    of_inputs = carray(at(addresses[1]), (E * R, I), asked.dtype)
    # Of each layer, where its weights begin among tiles, and how many columns their product has.
    firsts, lengths = np.empty(top + 1, np.int64), np.empty(top + 1, np.int64)
    count, longest, length = 0, 0, I
    for n in range(top + 1):
        firsts[n], lengths[n] = count, length
        count += 2 * blocks_of(length) * blocks_of(layers[n, COLUMNS])
        longest = max(longest, blocks_of(length), blocks_of(layers[n, COLUMNS]))
        length = layers[n, COLUMNS]
    at_once = 1 if count * TILE <= NEARBY else AT_ONCE
    right = room_for(count)
    one, other = room_for(2 * longest * at_once), room_for(2 * longest * at_once)
    values = np.empty((BLOCK, BLOCK * longest), np.float32)
    scaled = np.empty(BLOCK * longest, np.float32)
    places, tasks = np.empty(BLOCK * at_once, np.int64), np.empty(BLOCK * at_once, np.int64)
    for n in range(last + 1):
        if layers[n, SUMS] != 0:
            carray(at(layers[n, SUMS]), (E * K * layers[n, COLUMNS],), np.float32)[:] = 0
    entered = layers[top]
    begin(configuration.ctypes.data)
    for e in range(E):
        for n in range(top + 1):
            if lengths[n] > 0:
                shape = E, layers[n, ROWS], layers[n, COLUMNS]
                weights = carray(at(layers[n, WEIGHT]), shape, np.float32)[e, : lengths[n]]
                part = right[firsts[n] :][: 2 * blocks_of(lengths[n]) * blocks_of(shape[2])]
                pack_across(weights, 0, part)
                transpose(part, part)
        waiting, task, b = 0, e * K, 0
        for place in range(e * R, (e + 1) * R):
            packed = one.ctypes.data + waiting // BLOCK * 2 * longest * TILE
            packed += line_of(waiting % BLOCK)
            if has_column:
                value = np.float32(gradient[place, 0])
                if layers[last, SUMS] != 0:
                    carray(at(layers[last, SUMS]), (E * K,), np.float32)[task] += value
                column = layers[last, WEIGHT] + e * layers[last, ROWS] * 4
                row = scaled.ctypes.data
                scale_row(column, value, entered[COLUMNS], row)
                counts = _pass_row_back(
                    floats, shorts, entered, row, place, task, totals.ctypes.data, packed
                )
            else:
                row = gradient.ctypes.data + place * gradient.strides[0]
                counts = _pass_row_back(
                    given, kept, entered, row, place, task, totals.ctypes.data, packed
                )
            if counts:
                places[waiting], tasks[waiting] = place, task
                waiting += 1
            else:
                for n in range(top):
                    if layers[n, ERRORS] != 0:
                        width = layers[n, COLUMNS]
                        carray(at(layers[n, ERRORS]), (E * R, width), np.uint16)[place] = 0
                for i in range(I):
                    of_inputs[place, i] = 0
            b += 1
            if b == B:
                task, b = task + 1, 0
            if waiting < len(places) and place < (e + 1) * R - 1:
                continue
            source, target = one.ctypes.data, other.ctypes.data
            for n in range(top, -1, -1):
                if lengths[n] == 0:
                    break
                deep, weight = blocks_of(layers[n, COLUMNS]), right.ctypes.data + firsts[n] * TILE
                for first in range(0, waiting, BLOCK):
                    some = slice(first, min(first + BLOCK, waiting))
                    block = first // BLOCK * 2 * longest * TILE
                    left, out = source + block, target + block
                    if n > 0:
                        _go_back(
                            layers[n - 1],
                            left,
                            weight,
                            deep,
                            places[some],
                            tasks[some],
                            values,
                            out,
                        )
                    else:
                        _write_gradients(left, weight, deep, places[some], values, of_inputs)
                source, target = target, source
            waiting = 0
    end()


@_kernel
def _pass_row_back(
    gradients: NDArray[Any],
    references: NDArray[Any],
    layer: NDArray[np.int64],
    row: int,
    place: int,
    task: int,
    room: int,
    packed: int,
) -> bool:
    """Take a row of gradients back through ReLU and norm; tell whether it is more than zeros.

    Args:
        gradients: An empty array of their type.
        references: The same of what was kept.
        layer: Its numbers.
        row: The gradients' address.
        place: Number of the row among all networks'.
        task: That of its task among all networks'.
        room: Address of two numbers of float32, to be written over.
        packed: As of `pass_back`.
    """
    D, norm, relu = layer[COLUMNS], layer[NORM] != 0, layer[RELU] != 0
    along = layer[REFERENCE] + place * D * references.itemsize
    out = layer[ERRORS] + place * D * 2 if layer[ERRORS] != 0 else 0
    to = layer[SUMS] + task * D * 4
    mean, slope, scale = np.float32(0), np.float32(0), np.float32(1)
    if norm:
        totals, share = carray(at(room), (2,), np.float32), np.float32(1 / D)
        sums_of_row(gradients, references, row, along, D, relu, room)
        mean, slope = totals[0] * share, totals[1] * share
        scale = carray(at(layer[INVERSES]), (place + 1,), np.float32)[place]
    counts: bool = pass_back(
        gradients,
        references,
        row,
        along,
        D,
        relu,
        norm,
        mean,
        slope,
        scale,
        packed,
        2 * TILE,
        out,
        to,
    )
    return counts


@_kernel
def _go_back(
    before: NDArray[np.int64],
    left: int,
    right: int,
    deep: int,
    places: NDArray[np.int64],
    tasks: NDArray[np.int64],
    values: NDArray[np.float32],
    packed: int,
) -> None:
    """Take a block of rows from the products' gradients of one layer to those of the one before.

    Args:
        before: The latter's numbers.
        left: The rows' tiles.
        right: Those of the former's transposed weight.
        deep: Blocks of its columns.
        places: The rows' numbers among all networks'.
        tasks: Those of their tasks.
        values: Room for the product.
        packed: Where the result's tiles begin.
    """
    D, wide = before[COLUMNS], blocks_of(before[COLUMNS])
    if before[NORM] != 0:
        floats, shorts = carray(at(0), (0,), np.float32), carray(at(0), (0,), np.uint16)
        totals = np.empty(2, np.float32)
        for n in range(wide):
            multiply(left, right, n, deep, values, n)
        for r in range(len(places)):
            row = values.ctypes.data + r * values.strides[0]
            out = packed + line_of(r)
            _pass_row_back(
                floats, shorts, before, row, places[r], tasks[r], totals.ctypes.data, out
            )
        return
    # What comes of 32 columns is finished while the next are multiplied.
    for n in range(wide + 1):
        if n < wide:
            multiply(left, right, n, deep, values, n % 2)
        if n == 0:
            continue
        d = (n - 1) * BLOCK
        pass_columns_back(
            values.ctypes.data + (n - 1) % 2 * BLOCK * values.itemsize,
            values.strides[0],
            len(places),
            places.ctypes.data,
            tasks.ctypes.data,
            before[REFERENCE] + d * 2,
            D,
            min(BLOCK, D - d),
            before[RELU] != 0,
            packed + (n - 1) * 2 * TILE,
            before[ERRORS] + d * 2 if before[ERRORS] != 0 else 0,
            before[SUMS] + d * 4,
        )


@_kernel
def _write_gradients(
    left: int,
    right: int,
    deep: int,
    places: NDArray[np.int64],
    values: NDArray[np.float32],
    of_inputs: NDArray[Any],
) -> None:
    """Write a block of rows of the inputs' gradients; see `_go_back`."""
    I = of_inputs.shape[1]  # noqa: E741
    wide, size = blocks_of(I), of_inputs.itemsize
    for n in range(wide + 1):
        if n < wide:
            multiply(left, right, n, deep, values, n % 2)
        if n == 0:
            continue
        i = (n - 1) * BLOCK
        row = values.ctypes.data + (n - 1) % 2 * BLOCK * values.itemsize
        for place in places:
            out = of_inputs.ctypes.data + (place * I + i) * size
            zero, one = np.float32(0), np.float32(1)
            write_row(of_inputs, row, zero, one, min(BLOCK, I - i), out, 0, 0, False)
            row += values.strides[0]
