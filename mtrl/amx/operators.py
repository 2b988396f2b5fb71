"""Layers and tasks' gradients in bf16 on a CPU that multiplies tiles: what the rest calls.

A library's product of the sizes that networks here have takes about as long to begin as to
multiply, and what follows it goes through memory once more. Here bias, layer norm and ReLU happen
to a product's rows while they are at hand, and what enters a product is rounded on its way there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .. import dispatch
from . import instructions
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
from .layers import backward, forward

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


def takes(inputs: Tensor, columns: int, dtype: torch.dtype, *others: torch.dtype) -> bool:
    """Tell whether layers go this way.

    Args:
        inputs: Of the layer.
        columns: Of its results.
        dtype: Of its products.
        others: Of whatever else kernels read or write, which they do as bf16 or float32.
    """
    if dtype != torch.bfloat16 or not dispatch.has_operators(inputs):
        return False
    if not instructions.available() or not _TYPES.keys() >= {inputs.dtype, *others}:
        return False
    is_small = inputs.numel() * columns <= MOST_FOR_ONE_THREAD
    return 0 not in inputs.shape and (is_small or torch.get_num_threads() <= THREADS)


def _sets(inputs: Tensor) -> tuple[Tensor, int]:
    """Return inputs one after the other, and how many there are: one if all networks' are one."""
    if inputs.stride(0) == 0:
        inputs = inputs[:1]
    return inputs.contiguous(), len(inputs)


def _room_for_results(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: bool,
    relu: bool,
    keep: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    del bias, relu
    shape = *inputs.shape[:3], weight.shape[-1]
    is_kept = keep and norm
    return (
        inputs.new_empty(shape, dtype=dtype),
        inputs.new_empty(shape if is_kept else (0,), dtype=torch.bfloat16),
        inputs.new_empty(shape[:3] if is_kept else (0,), dtype=torch.float32),
    )


@dispatch.operator(
    "(Tensor inputs, Tensor weight, Tensor bias, bool norm, bool relu, bool keep, "
    "ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    _room_for_results,
)
def apply(
    inputs: Float[Tensor, "E K B I"],
    weight: Float[Tensor, "E J D"],
    bias: Float[Tensor, "E 1 D"],
    norm: bool,
    relu: bool,
    keep: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply layers of E networks; see `mtrl.layers.linear`.

    Returns:
        The results and, if there is a norm and they are to be kept, normalised rows and 1 / their
        deviations.
    """
    room = _room_for_results(inputs, weight, bias, norm, relu, keep, dtype)
    given, sets = _sets(inputs)
    weight, bias = weight.contiguous(), bias.contiguous()
    E, K, B, I = inputs.shape  # noqa: E741
    J, D = weight.shape[1:]
    addresses = [each.data_ptr() for each in (given, weight, bias, *room)]
    forward(
        CONFIGURATION,
        _TYPES[given.dtype],
        _TYPES[dtype],
        tuple(addresses),
        (E, K, B, I, D, sets, J),
        norm,
        relu,
    )
    return room


def _room_for_gradients(
    gradient: Tensor,
    reference: Tensor,
    inverse: Tensor,
    weight: Tensor,
    norm: bool,
    relu: bool,
    keep: bool,
    inputs: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    del reference, inverse, weight, norm, relu
    E, K, B, D = gradient.shape
    return (
        gradient.new_empty((E, K, B, D) if keep else (0,), dtype=torch.bfloat16),
        gradient.new_zeros(E, K, D, dtype=torch.float32),
        gradient.new_empty(E, K, B, inputs, dtype=dtype),
    )


@dispatch.operator(
    "(Tensor gradient, Tensor reference, Tensor inverse, Tensor weight, bool norm, bool relu, "
    "bool keep, int inputs, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    _room_for_gradients,
)
def go_back(
    gradient: Float[Tensor, "E K B D"],
    reference: Float[Tensor, "E K B D"],
    inverse: Float[Tensor, ...],
    weight: Float[Tensor, "E J D"],
    norm: bool,
    relu: bool,
    keep: bool,
    inputs: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of products, rounded, their sums over tasks' rows, and those of inputs.

    Args:
        gradient: Of what `apply` returned.
        reference: The normalised rows that it returned or, without norm, the result.
        inverse: What else it returned.
        weight: As it was given.
        norm: Whether there is a layer norm.
        relu: Whether there is a ReLU.
        keep: Whether gradients of products and their sums are asked for.
        inputs: How many of the inputs' gradients are asked for: I, or 0.
        dtype: Of these.
    """
    room = _room_for_gradients(
        gradient, reference, inverse, weight, norm, relu, keep, inputs, dtype
    )
    gradient, reference = gradient.contiguous(), reference.contiguous()
    inverse, weight = inverse.contiguous(), weight.contiguous()
    addresses = [each.data_ptr() for each in (gradient, reference, inverse, weight, *room)]
    E, K, B, D = gradient.shape
    backward(
        CONFIGURATION,
        _TYPES[gradient.dtype],
        _TYPES[reference.dtype],
        _TYPES[dtype],
        tuple(addresses),
        (E, K, B, inputs, D, weight.shape[1]),
        norm,
        relu,
    )
    return room


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
) -> Float[Tensor, "K K"]:
    """Return the inner products of tasks' gradients, summed over networks, layers and parameters.

    Args:
        inputs: As of `TaskBlocks`, of each layer.
        errors: The same: bf16, but for one column.
        sums: The gradients of its bias.
        own: Whether they are also those of a row of the weight that is each task's own.
    """
    K = sums[0].shape[1]
    result = np.zeros((K, K))
    for each, of_each, of_bias, has_own_row in zip(inputs, errors, sums, own, strict=True):
        given, sets = _sets(each)
        of_each, of_bias = of_each.contiguous(), of_bias.contiguous()
        (E, _, B, I), D = each.shape, of_each.shape[-1]  # noqa: E741
        addresses, kind = (given.data_ptr(), of_each.data_ptr()), _TYPES[given.dtype]
        if D == 1:
            add_gramian_of_columns(kind, addresses, (E, K, B, I, sets), result)
        else:
            way = add_gramian_of_rows if rows_are_cheaper(K, B, I, D) else add_gramian_of_factors
            way(CONFIGURATION, kind, addresses, (E, K, B, I, D, sets), result)
        add_gramian_of_sums(of_bias.data_ptr(), (E, K, D), has_own_row, result)
    room = _room_for_gramian(inputs, errors, sums, own)
    write_gramian(result, room.data_ptr())
    return room


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
) -> list[Tensor]:
    """Return the weighted sums of tasks' gradients, ``(E, I, D)``, of each layer."""
    weights = weights.float().contiguous()
    room = _room_for_sums(weights, inputs, errors)
    for each, of_each, result in zip(inputs, errors, room, strict=True):
        given, sets = _sets(each)
        of_each = of_each.contiguous()
        (E, K, B, I), D = each.shape, of_each.shape[-1]  # noqa: E741
        tensors = given, of_each, weights, result
        addresses, kind = tuple([tensor.data_ptr() for tensor in tensors]), _TYPES[given.dtype]
        if D == 1:
            weighted_columns(kind, addresses, (E, K, B, I, sets))
        else:
            weighted_product(CONFIGURATION, kind, addresses, (E, K, B, I, D, sets))
    return room
