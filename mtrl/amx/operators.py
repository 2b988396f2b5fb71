"""Layers and tasks' gradients in bf16 on a CPU that multiplies tiles: what the rest calls.

A library's product of the sizes that networks here have takes about as long to begin as to
multiply, and what follows it goes through memory once more. Here bias, layer norm and ReLU happen
to a product's rows while they are at hand, and what enters a product is rounded on its way there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .. import dispatch
from . import instructions
from .backward import backward
from .forward import forward
from .gradients import (
    add_gramian_of_columns,
    add_gramian_of_factors,
    add_gramian_of_rows,
    add_gramian_of_sums,
    weighted_columns,
    weighted_product,
    write_gramian,
)
from .instructions import BLOCK, CONFIGURATION, SIDE

PRODUCT, FETCHED, INNER, ENTERED = 16, 20, 8, 120
"""Cycles, or so, that a product of two tiles takes, a tile's way to memory and back, the inner
product of two of float32, and a tile's way into one of many: estimates that decide between two ways
of equal result."""

THREADS = 2
"""Up to so many, kernels here, which use one, are faster than a library's products that use all."""

MOST_FOR_ONE_THREAD = 25_000_000
"""Multiplications up to which they are with more as well: an estimate."""


_TYPES: dict[torch.dtype, NDArray[Any]] = {
    torch.bfloat16: np.empty(0, np.uint16),
    torch.float32: np.empty(0, np.float32),
}
"""What tells kernels a type; they are given addresses, as an array takes half a microsecond."""


def takes(inputs: Tensor, multiplications: int, dtype: torch.dtype, *others: torch.dtype) -> bool:
    """Tell whether layers go this way.

    Args:
        inputs: Of the layers.
        multiplications: Of the largest product.
        dtype: Of products.
        others: Of what else kernels read or write as bf16 or float32.
    """
    if dtype != torch.bfloat16 or not dispatch.has_operators(inputs):
        return False
    if not instructions.available() or not _TYPES.keys() >= {inputs.dtype, *others}:
        return False
    is_small = multiplications <= MOST_FOR_ONE_THREAD
    return multiplications > 0 and (is_small or torch.get_num_threads() <= THREADS)


def _sets(calls: dispatch.InTurn, inputs: Tensor) -> tuple[Tensor, int]:
    """Return inputs one after the other, and how many there are: one if all networks' are one."""
    sets = inputs.shape[0]
    if sets > 1 and inputs.stride(0) == 0:
        inputs, sets = inputs[:1], 1
    return calls.contiguous(inputs), sets


def _room_for_results(
    inputs: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    norms: Sequence[bool],
    relus: Sequence[bool],
    keep: str,
    dtype: torch.dtype,
) -> list[Tensor]:
    del biases, relus
    rows, bf16 = inputs.shape[:3], torch.bfloat16
    *hidden, last = (weight.shape[-1] for weight in weights)
    room = [inputs.new_empty((*rows, last), dtype=dtype)]
    if keep == NOTHING:
        return room
    for width, norm in zip(hidden, norms, strict=False):
        if keep == ALL or not norm:
            room.append(inputs.new_empty((*rows, width), dtype=bf16))
    normed = [width for width, norm in zip((*hidden, last), norms, strict=True) if norm]
    room += [inputs.new_empty((*rows, width), dtype=bf16) for width in normed]
    if normed:
        room.append(inputs.new_empty((len(normed), *rows), dtype=torch.float32))
    return room


NOTHING, FOR_INPUTS, ALL = "nothing", "for inputs", "all"
"""What `apply` keeps for the way back: what that of the inputs needs, or that of parameters too."""


@dispatch.operator(
    "(Tensor inputs, Tensor[] weights, Tensor[] biases, bool[] norms, bool[] relus, str keep, "
    "ScalarType dtype) -> Tensor[]",
    _room_for_results,
)
def apply(
    inputs: Float[Tensor, "E K B I"],
    weights: Sequence[Float[Tensor, "E _ _"]],
    biases: Sequence[Float[Tensor, "E 1 _"]],
    norms: Sequence[bool],
    relus: Sequence[bool],
    keep: str,
    dtype: torch.dtype,
    room: list[Tensor],
) -> Callable[[], object]:
    """Apply layers of E networks, one after the other; see `mtrl.layers.chain`.

    Args:
        inputs: Of the first.
        weights: Of each, in float32: a row for each input and, if there are more, one for each
            task. More than one column; but the last of several may have one, if neither norm nor
            ReLU follows.
        biases: Of each, the same.
        norms: Whether a layer norm follows.
        relus: Whether a ReLU follows.
        keep: `NOTHING`, `FOR_INPUTS` or `ALL`.
        dtype: Of the last results. Others are bf16.
        room: For the last results; then for what is kept, see `kept`.
    """
    calls = dispatch.InTurn()
    given, sets = _sets(calls, inputs)
    weights = [calls.contiguous(weight) for weight in weights]
    biases = [calls.contiguous(bias) for bias in biases]
    E, K, B, I = inputs.shape  # noqa: E741
    results, rows, inverses = kept(room, norms, keep)
    of_norms = itertools.count(_address(inverses), E * K * B * 4)
    numbers: list[int] = []
    for n, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        numbers += (*weight.shape[1:], norms[n], relus[n], weight.data_ptr(), bias.data_ptr())
        numbers += (_address(results[n]), _address(rows[n]), next(of_norms) if norms[n] else 0)
    kinds, sizes = (_TYPES[given.dtype], _TYPES[dtype]), (E, K, B, I, sets)
    calls.append(
        partial(forward, CONFIGURATION, *kinds, given.data_ptr(), sizes, np.array(numbers))
    )
    return calls


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def kept(
    found: Sequence[Tensor], norms: Sequence[bool], keep: str
) -> tuple[list[Tensor | None], list[Tensor | None], Tensor | None]:
    """Sort what `apply` has found.

    Args:
        found: That.
        norms: As given to it.
        keep: The same.

    Returns:
        Each layer's results and its normalised rows, where there are any; and 1 / the deviations of
        all layers with a norm, one after the other.
    """
    outputs, *rest = found
    if keep == NOTHING:
        nothing: list[Tensor | None] = [None] * len(norms)
        return [*nothing[1:], outputs], nothing, None
    left = iter(rest)
    results = [next(left) if keep == ALL or not norm else None for norm in norms[:-1]]
    rows = [next(left) if norm else None for norm in norms]
    return [*results, outputs], rows, next(left, None)


def _room_for_gradients(
    gradient: Tensor,
    found: Sequence[Tensor],
    weights: Sequence[Tensor],
    norms: Sequence[bool],
    relus: Sequence[bool],
    keep: str,
    inputs: int,
    dtype: torch.dtype,
) -> list[Tensor]:
    del found, norms, relus
    E, K, B, _ = gradient.shape
    room = [gradient.new_empty((E, K, B, inputs), dtype=dtype)] if inputs > 0 else []
    if keep == ALL:
        widths = [weight.shape[-1] for weight in weights]
        room += [gradient.new_empty((E, K, D), dtype=torch.float32) for D in widths]
        shapes = [(E, K, B, D) for D in widths if D > 1]
        room += [gradient.new_empty(shape, dtype=torch.bfloat16) for shape in shapes]
    return room


@dispatch.operator(
    "(Tensor gradient, Tensor[] found, Tensor[] weights, bool[] norms, bool[] relus, str keep, "
    "int inputs, ScalarType dtype) -> Tensor[]",
    _room_for_gradients,
)
def go_back(
    gradient: Float[Tensor, "E K B D"],
    found: Sequence[Tensor],
    weights: Sequence[Float[Tensor, "E _ _"]],
    norms: Sequence[bool],
    relus: Sequence[bool],
    keep: str,
    inputs: int,
    dtype: torch.dtype,
    room: list[Tensor],
) -> Callable[[], object]:
    """Find the gradients of inputs, and of each layer's products, rounded, with their sums.

    Args:
        gradient: Of the last results.
        found: What `apply` has found.
        weights: As they were given to it.
        norms: The same.
        relus: The same.
        keep: The same, but not `NOTHING`. With `ALL`, gradients of products are asked for.
        inputs: How many of the inputs' gradients are asked for: I, or 0.
        dtype: Of these.
        room: For the gradients of inputs, if asked for; then, with `ALL`, for the sums over tasks'
            rows of each layer, ``(E, K, D)``, and the gradients of products, ``(E, K, B, D)``, of
            each but a last one of one column, whose are `gradient`.
    """
    calls = dispatch.InTurn()
    given = calls.contiguous(gradient)
    found = [calls.contiguous(each) for each in found]
    weights = [calls.contiguous(weight) for weight in weights]
    left = iter(room)
    of_inputs = next(left).data_ptr() if inputs > 0 else 0
    sums = [next(left).data_ptr() if keep == ALL else 0 for _ in weights]
    results, rows, inverses = kept(found, norms, keep)
    E, K, B, _ = given.shape
    of_norms = itertools.count(_address(inverses), E * K * B * 4)
    numbers: list[int] = []
    for n, weight in enumerate(weights):
        J, D = weight.shape[1:]
        reference = _address(rows[n] if norms[n] else results[n])
        errors = next(left).data_ptr() if keep == ALL and D > 1 else 0
        numbers += (J, D, norms[n], relus[n], weight.data_ptr(), reference)
        numbers += (next(of_norms) if norms[n] else 0, errors, sums[n])
    of_last = torch.bfloat16 if norms[-1] else found[0].dtype
    kinds = _TYPES[given.dtype], _TYPES[of_last], _TYPES[dtype]
    addresses, sizes = (given.data_ptr(), of_inputs), (E, K, B, inputs)
    calls.append(partial(backward, CONFIGURATION, *kinds, addresses, sizes, np.array(numbers)))
    return calls


def _room_for_gramian(
    inputs: Sequence[Tensor], errors: Sequence[Tensor], sums: Sequence[Tensor], own: Sequence[bool]
) -> Tensor:
    del inputs, errors, own
    K = sums[0].shape[1]
    return sums[0].new_empty(K, K, dtype=torch.float32)


@dispatch.operator(
    "(Tensor[] inputs, Tensor[] errors, Tensor[] sums, bool[] own) -> Tensor", _room_for_gramian
)
def gramian(
    inputs: Sequence[Float[Tensor, "E K B _"]],
    errors: Sequence[Float[Tensor, "E K B _"]],
    sums: Sequence[Float[Tensor, "E K _"]],
    own: Sequence[bool],
    room: Float[Tensor, "K K"],
) -> Callable[[], object]:
    """Find the inner products of tasks' gradients, summed over networks, layers and parameters.

    Args:
        inputs: As of `TaskBlocks`, of each layer.
        errors: The same: bf16, but for one column.
        sums: The gradients of its bias.
        own: Whether they are also those of a row of the weight that is each task's own.
        room: For these.
    """
    K = sums[0].shape[1]
    result = np.empty((K, K))
    calls = dispatch.InTurn([partial(result.fill, 0)])
    for each, of_each, of_bias, has_own_row in zip(inputs, errors, sums, own, strict=True):
        given, sets = _sets(calls, each)
        of_each, of_bias = calls.contiguous(of_each), calls.contiguous(of_bias)
        (E, _, B, I), D = each.shape, of_each.shape[-1]  # noqa: E741
        addresses, kind = (given.data_ptr(), of_each.data_ptr()), _TYPES[given.dtype]
        if D == 1:
            given_columns = kind, addresses, (E, K, B, I, sets), result
            calls.append(partial(add_gramian_of_columns, *given_columns))
        else:
            way = add_gramian_of_rows if rows_are_cheaper(K, B, I, D) else add_gramian_of_factors
            given_rows = kind, addresses, (E, K, B, I, D, sets), result
            calls.append(partial(way, CONFIGURATION, *given_rows))
        of_sums = of_bias.data_ptr(), (E, K, D), has_own_row, result
        calls.append(partial(add_gramian_of_sums, *of_sums))
    calls.append(partial(write_gramian, result, room.data_ptr()))
    return calls


def rows_are_cheaper(K: int, B: int, I: int, D: int) -> bool:  # noqa: E741
    """Count tiles for K tasks, B rows each, of I inputs and D outputs; see `TaskBlocks`."""
    pairs = K * (K + 1) / 2
    high, wide, deep = (-(-length // SIDE) for length in (I, D, B))
    inner = min(INNER * pairs, ENTERED * K)
    of_rows = high * wide * (K * (PRODUCT * -(-B // BLOCK) + FETCHED) + inner)
    of_factors = pairs * deep**2 * (PRODUCT * (high + wide) / 2 + 2 * FETCHED)
    return of_rows < of_factors


def _room_for_sums(
    weights: Tensor, inputs: Sequence[Tensor], errors: Sequence[Tensor]
) -> list[Tensor]:
    return [
        weights.new_empty(len(of_each), each.shape[-1], of_each.shape[-1], dtype=torch.float32)
        for each, of_each in zip(inputs, errors, strict=True)
    ]


@dispatch.operator("(Tensor weights, Tensor[] inputs, Tensor[] errors) -> Tensor[]", _room_for_sums)
def weighted_gradients(
    weights: Float[Tensor, " K"],
    inputs: Sequence[Float[Tensor, "E K B _"]],
    errors: Sequence[Float[Tensor, "E K B _"]],
    room: list[Tensor],
) -> Callable[[], object]:
    """Find the weighted sums of tasks' gradients, ``(E, I, D)``, of each layer."""
    calls = dispatch.InTurn()
    weights = calls.contiguous(weights, torch.float32)
    for each, of_each, result in zip(inputs, errors, room, strict=True):
        given, sets = _sets(calls, each)
        of_each = calls.contiguous(of_each)
        (E, K, B, I), D = each.shape, of_each.shape[-1]  # noqa: E741
        tensors = given, of_each, weights, result
        addresses, kind = tuple([tensor.data_ptr() for tensor in tensors]), _TYPES[given.dtype]
        if D == 1:
            calls.append(partial(weighted_columns, kind, addresses, (E, K, B, I, sets)))
        else:
            sizes = (E, K, B, I, D, sets)
            calls.append(partial(weighted_product, CONFIGURATION, kind, addresses, sizes))
    return calls
