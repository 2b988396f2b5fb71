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

LARGE = 40_000_000
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
    calls = dispatch.InTurn()
    calls.append(_MultiplyPacked(calls.contiguous(left.detach()), right.detach(), result))
    return calls


class _MultiplyPacked:
    """Packs rows that are not zeros, multiplies them, and writes what comes of them in its place.

    Between two kernels a product is called, and as little as can be of anything else: beside what
    is compiled, code that runs once in an update costs ten times of what it does in a loop.
    """

    def __init__(self, left: Tensor, right: Tensor, result: Tensor) -> None:
        self._given = left, right, result
        E, R, _ = left.shape
        packed = torch.empty_like(left)
        self._arrays = numbers(left), numbers(packed), np.empty((E, R), np.int64)
        self._result, self._counts = numbers(result), np.empty(E, np.int64)
        self._most, self._step = WORTH_PACKING * E * R, -(-R // SHAPES)
        self._packed, self._parts = packed, dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]]()

    def __call__(self) -> None:
        left, right, result = self._given
        _find_and_pack(*self._arrays, self._counts, self._step)
        counts = self._counts.tolist()
        if sum(counts) > self._most:
            result.copy_(multiply(left, right, result.dtype))
            return
        for e, count in enumerate(counts):
            if count > 0:
                _multiply_into(*self._part(e, -(-count // self._step)))
        _unpack(self._result, self._arrays[-1], self._counts)

    def _part(self, e: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is multiplied of a network, and where to: looked up, as it comes again."""
        if (e, steps) not in self._parts:
            _, right, result = self._given
            rows = steps * self._step  # or what there are
            self._parts[e, steps] = self._packed[e, :rows], right[e], result[e, :rows]
        return self._parts[e, steps]


def _multiply_into(
    left: Float[Tensor, "R I"], right: Float[Tensor, "I D"], out: Float[Tensor, "R D"]
) -> None:
    is_emulated = left.dtype == torch.bfloat16 and not has_bf16(left.device)
    if is_emulated or not left.dtype == right.dtype == out.dtype:
        out.copy_(multiply(left.unsqueeze(0), right.unsqueeze(0), out.dtype)[0])
    else:
        torch.mm(left, right, out=out)


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
def _find_and_pack(
    rows: NDArray[Any],
    packed: NDArray[Any],
    places: NDArray[np.int64],
    counts: NDArray[np.int64],
    step: int,
) -> None:
    """Write where each network's rows are that are not all zeros, how many they are, and them.

    They are filled up with rows of zeros to a multiple of `step`, if there are as many.
    """
    use_widest_vectors()
    E, R, I = rows.shape  # noqa: E741
    for e in range(E):
        count = 0
        for r in range(R):
            row, out, total = rows[e, r], packed[e, count], np.float32(0)
            for i in range(I):
                out[i] = row[i]
                total += abs(read(row[i]))
            if not total == 0:  # noqa: SIM201 - NaN counts
                places[e, count] = r
                count += 1
        counts[e] = count
        for r in range(count, min(R, -(-count // step) * step)):
            for i in range(I):
                packed[e, r, i] = 0


@_kernel
def _unpack(rows: NDArray[Any], places: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    """Move each network's first rows to their places, and write zeros to the others."""
    use_widest_vectors()
    E, R, D = rows.shape
    for e in range(E):
        number = counts[e] - 1
        for r in range(R - 1, -1, -1):  # from the end: what is overwritten has been moved
            out = rows[e, r]
            if number >= 0 and places[e, number] == r:
                row = rows[e, number]
                if number < r:
                    for d in range(D):
                        out[d] = row[d]
                number -= 1
            else:
                for d in range(D):
                    out[d] = 0
