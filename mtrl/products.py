"""Matrix products of E networks at once."""

from __future__ import annotations

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
        right: The other. If it is of a wider type, both are multiplied in that.
        dtype: Of the result; by default that of `right`.
    """
    dtype = dtype or right.dtype
    if dispatch.on_cpu(left) and torch.bfloat16 in (left.dtype, dtype) and _is_thin(left, right):
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
        return torch.bmm(right.mT, left.mT).mT.contiguous()
    return torch.bmm(left, right)


def _is_thin(left: Tensor, right: Tensor) -> bool:
    """Tell whether rows are multiplied with one column, or a column with one row."""
    return right.dtype == torch.float32 and 1 in (left.shape[-1], right.shape[-1])


def _multiply_thin(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply numbers of bf16 with those of float32 while they pass, without a copy of them."""
    result = left.new_empty(*left.shape[:2], right.shape[-1], dtype=dtype)
    kernel = _outer if left.shape[-1] == 1 else _times_column
    kernel(numbers(left.contiguous()), right.numpy(), numbers(result))
    return result


@_kernel
def _times_column(left: NDArray[Any], right: NDArray[Any], result: NDArray[Any]) -> None:
    """Write ``left @ right``, where `right` and `result` have one column."""
    use_widest_vectors()
    E, R, I = left.shape  # noqa: E741
    for e in range(E):
        column = right[e].reshape(I)
        for r in range(R):
            row, total = left[e, r], column[0] * np.float32(0)
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
        row = right[e].reshape(D)
        for r in range(R):
            factor, out = read(left[e, r, 0]), result[e, r]
            for d in range(D):
                out[d] = rounded(factor * row[d], out)
