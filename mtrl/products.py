"""Matrix products of E networks at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from . import bf16, dispatch
from .bf16 import numbers, read, rounded
from .compiler import Compiler, use_widest_vectors
from .device import has_bf16

THIN = 16
"""With so few columns a product is several times faster the other way round, rows with columns."""

SHAPES = 16
"""Rows that are left are filled up to one of so many numbers of rows, since the library prepares
itself for each number that it meets, which takes longer than the product."""

LARGE = 80_000_000
"""Multiplications in a product from which on looking for rows of zeros takes less than it saves."""

LARGE_IF_THIN = 500_000
"""Numbers on the larger side of a product with one column, or of one column, from which on a
compiler's loops take longer than a kernel."""

WORTH_PACKING = 0.8
"""Share of rows that are not zeros up to which the others are left out of a product."""

_kernel = Compiler("products", Path(__file__), Path(bf16.__file__)).vectorised_kernel


def multiply(
    left: Float[Tensor, "E R I"],
    right: Float[Tensor, "E I D"],
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "E R D"]:
    """Return ``left @ right``, on a CPU several times faster than `torch.bmm` for a thin side.

    A CPU that cannot multiply bf16 multiplies the same numbers as fp32, which is exact, adds them
    up as such, as one that can does too, and rounds what comes out: fifty times faster than torch.

    Args:
        left: One factor.
        right: The other, in whose type both are multiplied.
        dtype: Of the result; by default that of `right`.
    """
    dtype = dtype or right.dtype
    if torch.bfloat16 in (left.dtype, dtype) and _is_thin(left, right):
        is_large = left.shape[:2].numel() * max(left.shape[-1], right.shape[-1]) >= LARGE_IF_THIN
        if dispatch.on_cpu(left) or (is_large and dispatch.has_operators(left)):
            return _multiply_thin(left, right, dtype)
    return _multiply(left.to(right.dtype), right).to(dtype)


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    if left.dtype == torch.bfloat16 and not has_bf16(left.device):
        return _multiply(left.float(), right.float()).to(torch.bfloat16)
    if not dispatch.has_operators(left):
        return torch.bmm(left, right)
    if left.shape[-1] == 1:
        return left * right
    if right.shape[-1] == 1:
        columns = [a @ b for a, b in zip(left, right.squeeze(-1), strict=True)]
        return torch.stack(columns).unsqueeze(-1)
    if right.shape[-1] <= THIN < left.shape[-2]:
        return _multiply_all(right.mT, left.mT).mT.contiguous()
    return _multiply_all(left, right)


def _multiply_all(left: Tensor, right: Tensor) -> Tensor:
    """Return `torch.bmm`, of one network without a dimension that a compiler may give any stride.

    Torch copies a transposed factor whose stride it does not expect.
    """
    if len(left) > 1:
        return torch.bmm(left, right)
    return torch.mm(left[0], right[0]).unsqueeze(0)


def multiply_rows_that_count(
    left: Float[Tensor, "E R I"], right: Float[Tensor, "E I D"], dtype: torch.dtype
) -> Float[Tensor, "E R D"]:
    """Return `multiply`, for a left factor many of whose rows are nothing but zeros.

    On a CPU large products leave them out, and what is not finite on the right stays out of what
    comes of them. Where a value is the lower of two networks', its gradient goes back to one of
    them alone.
    """
    if dispatch.has_operators(left) and left.numel() * right.shape[-1] >= LARGE:
        return _multiply_rows_that_count(left, right, dtype)
    return multiply(left, right, dtype)


def _room_for_product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    return left.new_empty(*left.shape[:2], right.shape[-1], dtype=dtype)


@dispatch.operator("(Tensor left, Tensor right, ScalarType dtype) -> Tensor", _room_for_product)
def _multiply_rows_that_count(
    left: Tensor, right: Tensor, dtype: torch.dtype, result: Tensor
) -> Callable[[], object]:
    del dtype  # which is the result's
    return functools.partial(_multiply_packed, left, right, result)


def _multiply_packed(left: Tensor, right: Tensor, result: Tensor) -> None:
    (E, R, _), dtype = left.shape, result.dtype
    left = left.contiguous()
    places, counts = np.empty((E, R), np.int64), np.empty(E, np.int64)
    _find(numbers(left), places, counts)
    if counts.sum() > WORTH_PACKING * E * R:
        result.copy_(multiply(left, right, dtype))
        return
    packed = torch.empty_like(left)
    step = -(-R // SHAPES)
    for e, count in enumerate(counts.tolist()):
        some, multiplied = slice(e, e + 1), min(R, -(-count // step) * step)
        _pack(numbers(left[e]), places[e, :count], numbers(packed[e, :multiplied]))
        product = multiply(packed[some, :multiplied], right[some], dtype)
        _unpack(numbers(product[0]), places[e, :count], numbers(result[e]))


def _is_thin(left: Tensor, right: Tensor) -> bool:
    """Tell whether rows are multiplied with one column, or a column with one row."""
    return right.dtype == torch.float32 and 1 in (left.shape[-1], right.shape[-1])


@dispatch.operator("(Tensor left, Tensor right, ScalarType dtype) -> Tensor", _room_for_product)
def _multiply_thin(
    left: Tensor, right: Tensor, dtype: torch.dtype, result: Tensor
) -> Callable[[], object]:
    """Multiply numbers of bf16 with those of float32 while they pass, without a copy of them."""
    del dtype  # which is the result's
    calls = dispatch.InTurn()
    given = numbers(calls.contiguous(left)), right.numpy(), numbers(result)
    calls.append(functools.partial(_outer if left.shape[-1] == 1 else _times_column, *given))
    return calls


@_kernel
def _times_column(left: NDArray[Any], right: NDArray[Any], result: NDArray[Any]) -> None:
    """Write ``left @ right``, where `right` and `result` have one column."""
    use_widest_vectors()
    E, R, I = left.shape  # noqa: E741
    zero = np.float32(0)
    for e in range(E):
        column = right[e].copy().reshape(I)  # in one piece, which a compiler then knows
        for r in range(R):
            row, total = left[e, r], zero
            for i in range(I):
                total += read(row[i]) * column[i]
            result[e, r, 0] = rounded(total, result)


@_kernel
def _outer(left: NDArray[Any], right: NDArray[Any], result: NDArray[Any]) -> None:
    """Write ``left @ right``, where `left` has one column."""
    use_widest_vectors()
    E, R, _ = left.shape
    D = right.shape[-1]
    for e in range(E):
        row = right[e, 0]
        for r in range(R):
            factor, out = read(left[e, r, 0]), result[e, r]
            for d in range(D):
                out[d] = rounded(factor * row[d], out)


@_kernel
def _find(rows: NDArray[Any], places: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    """Write where the rows are that are not all zeros, of each network, and how many."""
    use_widest_vectors()
    E, R, I = rows.shape  # noqa: E741
    for e in range(E):
        count = 0
        for r in range(R):
            row, total = rows[e, r], np.float32(0)
            for i in range(I):
                total += abs(read(row[i]))
            if not total == 0:  # noqa: SIM201 - NaN counts
                places[e, count] = r
                count += 1
        counts[e] = count


@_kernel
def _pack(rows: NDArray[Any], places: NDArray[np.int64], packed: NDArray[Any]) -> None:
    """Write the rows of these places, one after the other, and rows of zeros after them."""
    use_widest_vectors()
    for number in range(len(packed)):
        out = packed[number]
        if number < len(places):
            row = rows[places[number]]
            for i in range(len(out)):
                out[i] = row[i]
        else:
            for i in range(len(out)):
                out[i] = 0


@_kernel
def _unpack(rows: NDArray[Any], places: NDArray[np.int64], result: NDArray[Any]) -> None:
    """Write the rows to their places, and zeros to the others."""
    use_widest_vectors()
    R, D = result.shape
    number = 0
    for r in range(R):
        out = result[r]
        if number < len(places) and places[number] == r:
            row = rows[number]
            for d in range(D):
                out[d] = row[d]
            number += 1
        else:
            for d in range(D):
                out[d] = 0
