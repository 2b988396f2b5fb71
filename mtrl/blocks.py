"""K products of tall matrices, their inner products and weighted sums, multiplied out or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from . import dispatch
from .compiler import Compiler
from .products import multiply

ELEMENT_COST = 60
"""Writing and reading one number of J takes as long as this many multiplications and additions
inside a matrix product, or so: an estimate that decides between two ways of equal result."""

TASKS_AT_ONCE = 10
"""Tasks in one strip of a symmetric product: fewer multiply less above the diagonal, more fill the
processor better."""

AT_A_TIME = 1024
"""Columns of J whose inner products are found at a time: ten rows of them stay in the cache."""

_kernel = Compiler("gramian", Path(__file__)).vectorised_kernel


class TaskBlocks:
    """The matrices ``J[e, k] = inputs[e, k].T @ errors[e, k]`` of E networks and K tasks.

    Their inner products can be found in two ways that differ in cost, not in result:

    - multiply J out, ``(E, K, I, D)``, then ``J @ J.T``: the first costs as much as an ordinary
      weight gradient, the second K / B times that and the memory traffic of J;
    - never multiply it out: ``<a.T @ d, a'.T @ d'> = sum((a @ a'.T) * (d @ d'.T))``, which costs
      K B (I + D) / (I D) times an ordinary weight gradient, halved by symmetry. The weighted sum is
      one ordinary product then, of errors scaled by their task's weight.

    The second wins for small batches. Which is cheaper is decided by the shapes.

    Args:
        inputs: ``(E, K, B, I)``, in the type that products are computed in.
        errors: ``(E, K, B, D)``.
    """

    def __init__(self, inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B D"]) -> None:
        self.inputs, self.errors = inputs, errors
        self._low = errors.to(inputs.dtype)
        self._rows: Tensor | None = None

    def rows(self) -> Float[Tensor, "E K I D"]:
        """Return J."""
        if self._rows is None:
            self._rows = self._multiply_out()
        return self._rows

    def _multiply_out(self) -> Tensor:
        flat = multiply(self.inputs.flatten(0, 1).mT, self._low.flatten(0, 1))
        E, K = self.errors.shape[:2]
        return flat.to(self.errors.dtype).view(E, K, flat.shape[-2], flat.shape[-1])

    def gramian(self) -> Float[Tensor, "K K"]:
        """Return ``J @ J.T``, summed over the E networks."""
        return self._of_rows() if self.multiplies_out() else self._of_factors()

    def combine(self, weights: Float[Tensor, " K"]) -> Float[Tensor, "E I D"]:
        """Return ``weights @ J``."""
        if self._rows is not None:
            E, _, I, D = self._rows.shape  # noqa: E741
            return (weights @ self._rows.flatten(2)).view(E, I, D)
        scaled = (self.errors * weights[:, None, None]).to(self._low.dtype)
        product = multiply(self.inputs.flatten(1, 2).mT, scaled.flatten(1, 2))
        return product.to(self.errors.dtype)

    def multiplies_out(self) -> bool:
        """Tell which way to the Gramian is cheaper."""
        (_, K, B, I), D = self.inputs.shape, self.errors.shape[-1]  # noqa: E741
        return multiplying_out_is_cheaper(K, B, I, D)

    def _of_rows(self) -> Tensor:
        rows = self.rows().flatten(2)
        if not dispatch.on_cpu(rows):
            return torch.bmm(rows, rows.mT).sum(dim=0)
        gramian = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        _inner_products(rows.numpy(), gramian.numpy(), np.zeros(1, rows.numpy().dtype))
        return gramian.to(rows.dtype)

    def _of_factors(self) -> Tensor:
        K, B = self.errors.shape[1:3]
        gramian = self.errors.new_zeros(K, K)
        for first in range(0, K, TASKS_AT_ONCE):
            strip, rest = slice(first, first + TASKS_AT_ONCE), slice(first, None)
            products = _inner(self._low, strip, rest).mul_(_inner(self.inputs, strip, rest))
            sums = products.view(-1, B).sum(dim=1, dtype=self.errors.dtype)
            gramian[strip, rest] = sums.view(products.shape[0], -1, B, K - first).sum(dim=(0, 2))
        return gramian.triu_().add_(gramian.triu(1).mT)


def multiplying_out_is_cheaper(K: int, B: int, I: int, D: int) -> bool:  # noqa: E741
    """Count operations for K tasks, B rows each, of I inputs and D outputs; see `TaskBlocks`."""
    strips = -(-K // TASKS_AT_ONCE)
    share = (strips + 1) / (2 * strips)  # of the pairs that are on or above the diagonal
    factors = 2 * (K * B) ** 2 * (I + D) * share
    return factors > I * D * (K * K + ELEMENT_COST * K)


def _inner(vectors: Tensor, strip: slice, rest: slice) -> Tensor:
    return multiply(vectors[:, strip].flatten(1, 2), vectors[:, rest].flatten(1, 2).mT)


@_kernel
def _inner_products(rows: NDArray[Any], gramian: NDArray[np.float64], zeros: NDArray[Any]) -> None:
    """Add the rows' inner products to a symmetric matrix; `zeros` are of the rows' type.

    A general product computes each of them twice, and is at its slowest with so few rows.
    """
    E, K, P = rows.shape
    zero = zeros[0]
    for e in range(E):
        for first in range(0, P, AT_A_TIME):
            part = slice(first, min(P, first + AT_A_TIME))
            for i in range(0, K - 1, 2):
                # Two rows by four: a number that was read serves several products.
                one, other = rows[e, i, part], rows[e, i + 1, part]
                whole = i + (K - i) // 4 * 4
                for j in range(i, whole, 4):
                    a, b = rows[e, j, part], rows[e, j + 1, part]
                    c, d = rows[e, j + 2, part], rows[e, j + 3, part]
                    one_a, one_b, one_c, one_d = zero, zero, zero, zero
                    other_a, other_b, other_c, other_d = zero, zero, zero, zero
                    for p in range(len(one)):
                        x, y = one[p], other[p]
                        one_a += x * a[p]
                        one_b += x * b[p]
                        one_c += x * c[p]
                        one_d += x * d[p]
                        other_a += y * a[p]
                        other_b += y * b[p]
                        other_c += y * c[p]
                        other_d += y * d[p]
                    gramian[i, j] += one_a
                    gramian[i, j + 1] += one_b
                    gramian[i, j + 2] += one_c
                    gramian[i, j + 3] += one_d
                    gramian[i + 1, j] += other_a
                    gramian[i + 1, j + 1] += other_b
                    gramian[i + 1, j + 2] += other_c
                    gramian[i + 1, j + 3] += other_d
                for j in range(whole, K):
                    a = rows[e, j, part]
                    one_a, other_a = zero, zero
                    for p in range(len(one)):
                        one_a += one[p] * a[p]
                        other_a += other[p] * a[p]
                    gramian[i, j] += one_a
                    gramian[i + 1, j] += other_a
            if K % 2:
                last, total = rows[e, K - 1, part], zero
                for p in range(len(last)):
                    total += last[p] * last[p]
                gramian[K - 1, K - 1] += total
    for i in range(K):
        for j in range(i):
            gramian[i, j] = gramian[j, i]
