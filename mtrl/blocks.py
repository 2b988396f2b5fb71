"""K products of tall matrices, their inner products and weighted sums, multiplied out or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from . import bf16, dispatch
from .amx import operators as amx
from .bf16 import numbers, read, rounded, wide_type
from .compiler import Compiler, use_widest_vectors
from .products import multiply
from .task_rows import is_large, sums_of_columns

ELEMENT_COST = 30
"""Writing and reading one number of J takes as long as this many multiplications and additions
inside a matrix product, or so: an estimate that decides between two ways of equal result."""

ELEMENT_COST_NEARBY = 5
"""The same where J stays in a CPU's caches."""

TASKS_AT_ONCE = 10
"""Tasks in one strip of a symmetric product: fewer multiply less above the diagonal, more fill the
processor better."""

STRIP_COST = 600_000_000
"""Where there are no kernels of our own, as on a GPU, a strip is six operations more to launch. In
two microseconds each a GPU multiplies and adds so often."""

_kernel = Compiler("blocks", Path(__file__), Path(bf16.__file__)).vectorised_kernel


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
        inputs: ``(E, K, B, I)``, in the type that products are computed in, to which errors are
            rounded; or not rounded yet, where errors are.
        errors: ``(E, K, B, D)``, not rounded where they are one column. Results are at least of
            float32.

    Attributes:
        kept: J, its rows multiplied out with unused numbers between them, if a CPU keeps it.
        in_tiles: Whether `mtrl.amx` multiplies, in yet other ways.
    """

    def __init__(self, inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B D"]) -> None:
        self._wide = wide_type(errors.dtype)
        self._is_column = errors.shape[-1] == 1
        self.inputs = inputs
        of_products = inputs.dtype if self._is_column else errors.dtype
        self.in_tiles = amx.takes(
            inputs, inputs.numel() * errors.shape[-1], of_products, self._wide
        )
        if self._is_column:
            errors = errors.to(self._wide)
        elif not self.in_tiles:
            errors = errors.to(inputs.dtype)
        self.errors = errors
        self._length = inputs.shape[-1] * errors.shape[-1]
        self.kept: Tensor | None = None

    def rows(self) -> Float[Tensor, "E K I D"]:
        """Return J."""
        rows = self.multiply_out() if self.kept is None else self.kept[..., : self._length]
        return self._unflatten(rows.to(self._wide))

    def multiply_out(self) -> Float[Tensor, "E K ID"]:
        """Return J, a row for each task; keep nothing."""
        E, K = self.inputs.shape[:2]
        inputs = self.inputs.to(self.errors.dtype).flatten(0, 1)
        return multiply(inputs.mT, self.errors.flatten(0, 1)).to(self._wide).view(E, K, -1)

    def _unflatten(self, rows: Float[Tensor, "*batch ID"]) -> Float[Tensor, "*batch I D"]:
        return rows.view(*rows.shape[:-1], self.inputs.shape[-1], self.errors.shape[-1])

    def combine(self, weights: Float[Tensor, " K"]) -> Float[Tensor, "E I D"]:
        """Return ``weights @ J``, without J."""
        if self.in_tiles:
            return amx.weighted_gradients(weights, [self.inputs], [self.errors])[0]
        # But for a column's, which is found in one pass over the inputs, as the sum would be.
        if self._is_column and dispatch.on_cpu(self.errors):
            return self._unflatten(weights @ sums_of_columns(self.inputs, self.errors))
        product = multiply(self.inputs.flatten(1, 2).mT, self._scaled(weights).flatten(1, 2))
        return product.to(self._wide)

    def keep(self, rows: Float[Tensor, "E K _"]) -> None:
        """Remember J, as `mtrl.task_rows.rows_and_gramian` returned it."""
        self.kept = rows if rows.shape[-1] > 0 else None

    def _scaled(self, weights: Tensor) -> Tensor:
        """Return the errors, each times its task's weight."""
        if self.errors.dtype == self._wide or not dispatch.on_cpu(self.errors):
            return (self.errors * weights[:, None, None]).to(self.errors.dtype)
        scaled = torch.empty_like(self.errors)
        _scale(numbers(self.errors), weights.numpy(), numbers(scaled))
        return scaled

    def multiplies_out(self) -> bool:
        """Tell which way to the Gramian is cheaper."""
        (_, K, B, I), D = self.inputs.shape, self.errors.shape[-1]  # noqa: E741
        if self.in_tiles:
            return False
        is_nearby = dispatch.has_operators(self.errors) and not is_large(self.inputs, self.errors)
        cost = ELEMENT_COST_NEARBY if is_nearby else ELEMENT_COST
        strip_cost = 0 if dispatch.has_operators(self.errors) else STRIP_COST
        return self._is_column or multiplying_out_is_cheaper(K, B, I, D, cost, strip_cost)

    def gramian_of_factors(self) -> Float[Tensor, "K K"]:
        """Return ``J @ J.T``, summed over the E networks, without J."""
        if self.in_tiles:
            no_sums = self.errors.new_zeros(len(self.errors), self.errors.shape[1], 1).float()
            return amx.gramian([self.inputs], [self.errors], [no_sums], [False])
        K, B = self.errors.shape[1:3]
        gramian = self.errors.new_zeros(K, K, dtype=self._wide)
        for first in range(0, K, TASKS_AT_ONCE):
            strip, rest = slice(first, first + TASKS_AT_ONCE), slice(first, None)
            products = _inner(self.errors, strip, rest).mul_(_inner(self.inputs, strip, rest))
            sums = products.view(-1, B).sum(dim=1, dtype=self._wide)
            gramian[strip, rest] = sums.view(products.shape[0], -1, B, K - first).sum(dim=(0, 2))
        return gramian.triu_().add_(gramian.triu(1).mT)


def multiplying_out_is_cheaper(
    K: int,
    B: int,
    I: int,  # noqa: E741
    D: int,
    element_cost: int = ELEMENT_COST,
    strip_cost: int = 0,
) -> bool:
    """Count operations for K tasks, B rows each, of I inputs and D outputs; see `TaskBlocks`."""
    strips = -(-K // TASKS_AT_ONCE)
    share = (strips + 1) / (2 * strips)  # of the pairs that are on or above the diagonal
    factors = 2 * (K * B) ** 2 * (I + D) * share + strips * strip_cost
    return factors > I * D * (K * K + element_cost * K)


def _inner(vectors: Tensor, strip: slice, rest: slice) -> Tensor:
    return multiply(vectors[:, strip].flatten(1, 2), vectors[:, rest].flatten(1, 2).mT)


@_kernel
def _scale(errors: NDArray[Any], weights: NDArray[Any], result: NDArray[Any]) -> None:
    """Write the errors times their task's weight."""
    use_widest_vectors()
    E, K, B, D = errors.shape
    for e in range(E):
        for k in range(K):
            weight = weights[k]
            for b in range(B):
                row, out = errors[e, k, b], result[e, k, b]
                for d in range(D):
                    out[d] = rounded(weight * read(row[d]), out)
