"""K products of tall matrices, their inner products and weighted sums, multiplied out or not."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

ELEMENT_COST = 60
"""Writing and reading one number of J takes as long as this many multiplications and additions
inside a matrix product, or so: an estimate that decides between two ways of equal result."""

TASKS_AT_ONCE = 10
"""Tasks in one strip of a symmetric product: fewer multiply less above the diagonal, more fill the
processor better."""


FEW_TASKS, ROWS_AT_ONCE = 16, 2
"""Up to so many tasks the rows of J are so few that a product of all with all runs at a fraction of
the processor's rate; strips of a few rows are faster, and need only half of it."""


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
        inputs, errors = self.inputs.flatten(0, 1), self._low.flatten(0, 1)
        if errors.shape[-1] == 1:  # the same numbers in the same places, several times faster
            flat = torch.bmm(errors.mT, inputs).mT
        else:
            flat = torch.bmm(inputs.mT, errors)
        E, K = self.errors.shape[:2]
        return flat.to(self.errors.dtype).view(E, K, flat.shape[-2], flat.shape[-1])

    def gramian(self) -> Float[Tensor, "K K"]:
        """Return ``J @ J.T``, summed over the E networks."""
        K = self.errors.shape[1]
        gramian = self.errors.new_zeros(K, K)
        if self.multiplies_out():
            self.rows()
            block, width = self._block_of_rows, ROWS_AT_ONCE if K <= FEW_TASKS else K
        else:
            block, width = self._block_of_factors, TASKS_AT_ONCE
        for first in range(0, K, width):
            strip, rest = slice(first, first + width), slice(first, None)
            gramian[strip, rest] = block(strip, rest)
        return gramian.triu_().add_(gramian.triu(1).mT) if width < K else gramian

    def combine(self, weights: Float[Tensor, " K"]) -> Float[Tensor, "E I D"]:
        """Return ``weights @ J``."""
        if self._rows is not None:
            E, _, I, D = self._rows.shape  # noqa: E741
            return (weights @ self._rows.flatten(2)).view(E, I, D)
        scaled = (self.errors * weights[:, None, None]).to(self._low.dtype)
        product = torch.bmm(self.inputs.flatten(1, 2).mT, scaled.flatten(1, 2))
        return product.to(self.errors.dtype)

    def multiplies_out(self) -> bool:
        """Tell which way to the Gramian is cheaper, by a count of operations."""
        (_, K, B, I), D = self.inputs.shape, self.errors.shape[-1]  # noqa: E741
        strips = -(-K // TASKS_AT_ONCE)
        share = (strips + 1) / (2 * strips)  # of the pairs that are on or above the diagonal
        factors = 2 * (K * B) ** 2 * (I + D) * share
        return factors > I * D * (2 * K * K + ELEMENT_COST * K)

    def _block_of_rows(self, strip: slice, rest: slice) -> Tensor:
        rows = self.rows().flatten(2)
        return torch.bmm(rows[:, strip], rows[:, rest].mT).sum(dim=0)

    def _block_of_factors(self, strip: slice, rest: slice) -> Tensor:
        E, _, B, _ = self.inputs.shape
        products = _inner(self._low, strip, rest).mul_(_inner(self.inputs, strip, rest))
        sums = products.view(-1, B).sum(dim=1, dtype=self.errors.dtype)
        return sums.view(E, products.shape[1] // B, B, -1).sum(dim=(0, 2))


def _inner(vectors: Tensor, strip: slice, rest: slice) -> Tensor:
    return torch.bmm(vectors[:, strip].flatten(1, 2), vectors[:, rest].flatten(1, 2).mT)
