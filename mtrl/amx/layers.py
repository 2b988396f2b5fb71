"""Kernels of layers, there and back: what a product is for happens to its rows while at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray
from numpy.typing import NDArray

from ..activation import EPSILON
from ..compiler import Compiler, use_widest_vectors
from .instructions import BLOCK, LINE, SIDE, TILE, begin, end, multiply_block
from .packing import SOURCES, blocks_of, pack_across, pack_down, room_for, transpose
from .rows import (
    activate,
    add_to_row,
    at,
    pass_back,
    squares_of_row,
    sums_of_row,
    write_row,
)

_EPSILON = np.float32(EPSILON)

_kernel = Compiler("amx", *SOURCES).vectorised_kernel


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
        configuration: `mtrl.amx.instructions.CONFIGURATION`.
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
    R = K * B
    inputs = carray(at(addresses[0]), (own, R, I), given.dtype)
    weights = carray(at(addresses[1]), (E, J, D), np.float32)
    bias = carray(at(addresses[2]), (E, D), np.float32)
    result = carray(at(addresses[3]), (E, R, D), returned.dtype)
    kept = carray(at(addresses[4]), (E, R, D), np.uint16)
    inverse = carray(at(addresses[5]), (E, R), np.float32)
    is_kept = addresses[4] != 0
    one, share = np.float32(1), np.float32(1 / D)
    deep, wide = blocks_of(I), blocks_of(D)
    left, right = room_for(2 * deep), room_for(2 * deep * wide)
    # Without norm what comes of 32 columns is finished while the next are multiplied.
    values = np.empty((BLOCK, BLOCK * (wide if norm else 2)), np.float32)
    added = np.zeros((K if J > I else 1, BLOCK * wide), np.float32)
    biases = np.empty(BLOCK, np.int64)
    begin(configuration.ctypes.data)
    for e in range(E):
        pack_down(weights[e, :I], right)
        _add_biases(bias[e], weights[e, I:], added)
        for start in range(0, R, BLOCK):
            stop = min(start + BLOCK, R)
            pack_across(inputs[e % own, start:stop], 0, left)
            for r in range(start, stop):
                biases[r - start] = added.ctypes.data + r // B % len(added) * added.strides[0]
            if norm:
                for n in range(wide):
                    _multiply(left, right, n, values, n)
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
                    _multiply(left, right, n, values, n % 2)
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
        configuration: `mtrl.amx.instructions.CONFIGURATION`.
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
    R = K * B
    gradient = carray(at(addresses[0]), (E, R, D), gradients.dtype)
    reference = carray(at(addresses[1]), (E, R, D), references.dtype)
    inverse = carray(at(addresses[2]), (E, R), np.float32)
    weights = carray(at(addresses[3]), (E, J, D), np.float32)
    errors = carray(at(addresses[4]), (E, R, D), np.uint16)
    sums = carray(at(addresses[5]), (E, K, D), np.float32)
    of_inputs = carray(at(addresses[6]), (E, R, I), asked.dtype)
    is_kept = addresses[4] != 0
    zero, one, share = np.float32(0), np.float32(1), np.float32(1 / D)
    deep, wide = blocks_of(D), blocks_of(I)
    left, right = room_for(2 * deep), room_for(2 * deep * wide)
    values, totals = np.empty((BLOCK, 2 * BLOCK), np.float32), np.zeros(2, np.float32)
    places = np.empty(BLOCK, np.int64)
    begin(configuration.ctypes.data)
    for e in range(E):
        if I > 0:
            pack_across(weights[e, :I], 0, right)
            transpose(right, right)
        waiting = 0
        for r in range(R):
            given = gradient.ctypes.data + e * gradient.strides[0] + r * gradient.strides[1]
            along = reference.ctypes.data + e * reference.strides[0] + r * reference.strides[1]
            mean, slope, scale = zero, zero, one
            if norm:
                sums_of_row(gradient, reference, given, along, D, relu, totals.ctypes.data)
                mean, slope, scale = totals[0] * share, totals[1] * share, inverse[e, r]
            out = errors.ctypes.data + e * errors.strides[0] + r * errors.strides[1]
            of_task = e * sums.strides[0] + r // B * sums.strides[1]
            counts = pass_back(
                gradient,
                reference,
                given,
                along,
                D,
                relu,
                norm,
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
                        _multiply(left, right, n, values, n % 2)
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
def _multiply(
    left: NDArray[np.uint32],
    right: NDArray[np.uint32],
    n: int,
    values: NDArray[np.float32],
    place: int,
) -> None:
    """Write the columns of a product from 32 `n` on to those of `values` from 32 `place` on."""
    deep = len(left) // 2
    multiply_block(
        left.ctypes.data,
        right.ctypes.data + n * deep * 2 * TILE,
        deep,
        values.ctypes.data + place * BLOCK * values.itemsize,
        values.strides[0],
    )
