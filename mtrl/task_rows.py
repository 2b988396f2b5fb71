"""The tasks' gradients multiplied out on a CPU: rows of J, their inner products and their sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from . import dispatch, tiles
from .bf16 import numbers, wide_type
from .device import has_bf16
from .products import THIN, multiply
from .task_row_kernels import (
    add_all_inner_products,
    add_squares,
    inputs_at_a_time,
    mirror,
    multiply_in_tiles,
    sum_columns,
    weigh,
)

CACHE_WAY = 4096
"""Bytes after which addresses fall into the same lines of the innermost cache, or a multiple."""

GAP = 3072 + 64
"""Bytes between rows of J, beyond a multiple of that."""

LARGE = 8_000_000
"""Bytes of a J that, if it is kept, goes to memory and back."""

FORGOTTEN = 16
"""Up to so many rows a task multiplying once more for the weighted sum takes less time than a large
J takes on that way."""

MAPPED_ANEW = 32 << 20
"""Bytes of a J that takes longer than that with any number of rows, as the system clears its pages
each time it is allocated (`mtrl.device.keep_freed_memory`)."""

FEW = 64
"""Up to so many rows a task, shared by threads, a kernel multiplies J out faster than the library,
which is slow at products that sum over little, but can use several."""


_FACTORS: dict[torch.dtype, NDArray[Any]] = {
    torch.bfloat16: np.empty(0, np.uint32),
    torch.float32: np.empty(0, np.float32),
    torch.float64: np.empty(0),
}
"""Tells kernels what tiles multiply, by the type of rows."""

_TOTALS: dict[torch.dtype, NDArray[Any]] = _FACTORS | {torch.bfloat16: np.empty(0, np.float32)}
"""The same of their sums."""


def type_of_rows(errors: Tensor) -> torch.dtype:
    """Return what J is kept in: bf16 where products are, and kernels can."""
    keeps_bf16 = has_bf16(errors.device) and tiles.takes_bf16()
    return errors.dtype if keeps_bf16 else wide_type(errors.dtype)


def is_large(inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B D"]) -> bool:
    """Tell whether J does not stay in the caches."""
    return _size(inputs, errors) >= LARGE


def keeps_rows(inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B D"]) -> bool:
    """Tell whether J is kept for its weighted sum; else it is nowhere as a whole."""
    most = LARGE if errors.shape[-2] <= FORGOTTEN else MAPPED_ANEW
    return _size(inputs, errors) < most or not _goes_in_tiles(inputs, errors)


def _size(inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B D"]) -> int:
    """Return how many bytes J takes."""
    (E, K, _, I), D = inputs.shape, errors.shape[-1]  # noqa: E741
    return E * K * I * D * type_of_rows(errors).itemsize


def _goes_in_tiles(inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B D"]) -> bool:
    B, D = errors.shape[-2:]
    is_small = B * torch.get_num_threads() <= FEW
    return is_small and tiles.AVAILABLE and D > 1 and inputs.dtype == type_of_rows(errors)


def _room_for_rows(inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B D"]) -> Tensor:
    """Allocate the rows of J with unused numbers between them, ``(E, K, _)``, or none."""
    (E, K, _, I), D = inputs.shape, errors.shape[-1]  # noqa: E741
    dtype = type_of_rows(errors)
    return _room(E, K, I * D * keeps_rows(inputs, errors), dtype)


def _room(E: int, K: int, length: int, dtype: torch.dtype) -> Tensor:
    """Allocate rows with unused numbers between them.

    Those of a network are often a power of two long. One after the other, the same columns of all
    rows would compete for the same few lines of the caches.
    """
    return torch.empty(E, K, _distance(length, dtype), dtype=dtype)


def _distance(length: int, dtype: torch.dtype) -> int:
    """Return how many numbers lie between the beginnings of two rows."""
    distance = length * dtype.itemsize
    if distance > GAP:
        distance = -(-distance // CACHE_WAY) * CACHE_WAY + GAP
    return distance // dtype.itemsize


def _room_for_all(
    inputs: Sequence[Tensor], errors: Sequence[Tensor], sums: Sequence[Tensor], own: Sequence[bool]
) -> tuple[list[Tensor], Tensor]:
    del own
    some = [*sums, *errors][0]
    K = some.shape[1]
    rows = [_room_for_rows(a, d) for a, d in zip(inputs, errors, strict=True)]
    return rows, some.new_empty(K, K, dtype=wide_type(some.dtype))


@dispatch.operator(
    "(Tensor[] inputs, Tensor[] errors, Tensor[] sums, bool[] own) -> (Tensor[], Tensor)",
    _room_for_all,
)
def rows_and_gramian(
    inputs: Sequence[Float[Tensor, "_ K _ _"]],
    errors: Sequence[Float[Tensor, "_ K _ _"]],
    sums: Sequence[Float[Tensor, "_ K _"]],
    own: Sequence[bool],
    results: tuple[list[Tensor], Float[Tensor, "K K"]],
) -> Callable[[], object]:
    """Multiply the J of several layers out, and take inner products of the tasks' gradients.

    In one call: between kernels, calls are what costs.

    Args:
        inputs: As of `TaskBlocks`, of each layer whose J is to be multiplied out.
        errors: The same.
        sums: The tasks' gradients of biases ``(E, K, D)``, whose inner products are added.
        own: For each of these, whether the tasks' gradients are also those of a row of the weight
            that is each task's own.
        results: Each J ``(E, K, _)``, with unused numbers after each row, or empty if it is not
            kept, and the sum of all inner products.
    """
    rows, result = results
    gramian = np.empty(result.shape)
    calls = dispatch.InTurn([partial(gramian.fill, 0)])
    for factors, spaced in zip(zip(inputs, errors, strict=True), rows, strict=True):
        _multiply_out(calls, *factors, spaced, gramian)
    for each, has_own_row in zip(sums, own, strict=True):
        each = calls.contiguous(each)
        _add_inner_products(calls, each, each.shape[-1], gramian)
        if has_own_row:
            calls.append(partial(add_squares, each.numpy(), gramian))
    calls.append(partial(mirror, gramian, result.numpy()))
    return calls


def _multiply_out(
    calls: dispatch.InTurn,
    inputs: Float[Tensor, "E K B I"],
    errors: Float[Tensor, "E K B D"],
    rows: Float[Tensor, "E K _"],
    gramian: NDArray[np.float64],
) -> None:
    """Write J, and add the inner products of its rows on and above the Gramian's diagonal."""
    I, D = inputs.shape[-1], errors.shape[-1]  # noqa: E741
    if _goes_in_tiles(inputs, errors):
        given = numbers(calls.contiguous(inputs)), numbers(calls.contiguous(errors))
        array, at_a_time = numbers(rows), inputs_at_a_time(numbers(rows), D) * D
        kinds = _FACTORS[rows.dtype], _TOTALS[rows.dtype]
        distance = _distance(at_a_time, rows.dtype)
        calls.append(partial(multiply_in_tiles, *given, array, distance, *kinds, gramian))
        return
    if D == 1:
        calls.append(summing_columns(calls.contiguous(inputs), calls.contiguous(errors), rows))
    else:
        calls.append(partial(_multiply_by_library, inputs, errors, rows))
    _add_inner_products(calls, rows, I * D, gramian)


def _multiply_by_library(
    inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B D"], rows: Float[Tensor, "E K _"]
) -> None:
    I, D = inputs.shape[-1], errors.shape[-1]  # noqa: E741
    matrices = rows[..., : I * D].unflatten(-1, (I, D)).flatten(0, 1)
    a, d = inputs.flatten(0, 1).mT, errors.flatten(0, 1)
    if D <= THIN or inputs.dtype != rows.dtype:
        matrices.copy_(multiply(a, d))
    else:
        torch.bmm(a, d, out=matrices)


def sums_of_columns(
    inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B 1"]
) -> Float[Tensor, "E K I"]:
    """Return J, of errors of one column."""
    E, K, _, I = inputs.shape  # noqa: E741
    rows = errors.new_empty(E, K, I)
    summing_columns(inputs, errors, rows)()
    return rows


def summing_columns(
    inputs: Float[Tensor, "E K B I"],
    errors: Float[Tensor, "E K B 1"],
    rows: Float[Tensor, "E K _"],
) -> Callable[[], object]:
    """Prepare to write J, of errors of one column, to the start of each row; all in one piece."""
    a, d, out = (tensor.flatten(0, 1) for tensor in (inputs, errors, rows))
    return partial(sum_columns, numbers(a), d.numpy(), out.numpy())


def _add_inner_products(
    calls: dispatch.InTurn,
    rows: Float[Tensor, "E K _"],
    length: int,
    gramian: NDArray[np.float64],
) -> None:
    """Add those of the first `length` numbers of each row, summed over networks.

    Only on and above the diagonal. Numbers of bf16 below 1e-38 count as zero, in the rows and in
    their products.
    """
    if tiles.AVAILABLE:
        kind = _TOTALS[rows.dtype]
        calls.append(partial(add_all_inner_products, numbers(rows), length, kind, gramian))
    else:
        calls.append(partial(_add_by_library, rows[..., :length], torch.from_numpy(gramian)))


def _add_by_library(rows: Float[Tensor, "E K _"], gramian: Float[Tensor, "K K"]) -> None:
    rows = rows.double()
    gramian += torch.bmm(rows, rows.mT).sum(dim=0)


def _room_for_weighted_sums(
    weights: Tensor,
    rows: Sequence[Tensor],
    sums: Sequence[Tensor],
    inputs: Sequence[int],
    own: Sequence[bool],
) -> list[Tensor]:
    del rows
    room = []
    for each, count, has_own_row in zip(sums, inputs, own, strict=True):
        E, K, D = each.shape
        room += [weights.new_empty(E, count + K * has_own_row, D), weights.new_empty(E, 1, D)]
    return room


@dispatch.operator(
    "(Tensor weights, Tensor[] rows, Tensor[] sums, int[] inputs, bool[] own) -> Tensor[]",
    _room_for_weighted_sums,
)
def weighted_sums(
    weights: Float[Tensor, " K"],
    rows: Sequence[Float[Tensor, "_ K _"]],
    sums: Sequence[Float[Tensor, "_ K _"]],
    inputs: Sequence[int],
    own: Sequence[bool],
    results: list[Tensor],
) -> Callable[[], object]:
    """Write the weighted sums of several layers' J and of their biases' gradients, in one call.

    Args:
        weights: One per task.
        rows: As `rows_and_gramian` returned them.
        sums: The tasks' gradients of these layers' biases ``(E, K, D)``.
        inputs: How many each layer has.
        own: Whether each layer's weight goes on with a row for each task, whose gradient is that of
            the bias.
        results: For each layer the sum for its weight, ``(E, I, D)`` or ``(E, I + K, D)``, and for
            its bias, ``(E, 1, D)``.
    """
    del own  # which the results tell
    calls = dispatch.InTurn()
    layers = zip(rows, sums, inputs, results[::2], results[1::2], strict=True)
    for spaced, each, count, of_weight, of_bias in layers:
        length, each = count * each.shape[-1], calls.contiguous(each)
        given = weights.numpy(), numbers(spaced), length, each.numpy()
        out = of_weight.flatten(1).numpy(), of_bias.flatten(1).numpy()
        calls.append(partial(weigh, *given, *out))
    return calls
