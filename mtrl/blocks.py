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
from .compiler import Compiler, use_widest_vectors
from .products import THIN, multiply

ELEMENT_COST = 35
"""Writing and reading one number of J takes as long as this many multiplications and additions
inside a matrix product, or so: an estimate that decides between two ways of equal result."""

TASKS_AT_ONCE = 10
"""Tasks in one strip of a symmetric product: fewer multiply less above the diagonal, more fill the
processor better."""

AT_A_TIME = 768
"""Columns of J whose inner products are found at a time: seven rows of them stay in the innermost
cache."""

LARGE = 500_000
"""Numbers of J, 2 MB, that do not stay in a core's own caches: kept, they go to memory and back."""

PIECE = 400_000
"""About so many are multiplied out at a time where J is not kept."""

FORGOTTEN = 16
"""Up to so many rows a task multiplying once more for the weighted sum takes less time than a large
J takes on that way."""

CACHE_WAY = 1024
"""Numbers after which addresses fall into the same lines of the innermost cache, or a multiple."""

FEW = 8 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 32
"""Up to so many rows a task a kernel multiplies J out faster than the library, which is slow at
products that sum over little, and knows of no zeros; less so with AVX-512."""

_kernel = Compiler("gramian", Path(__file__)).vectorised_kernel


class TaskBlocks:
    """The matrices ``J[e, k] = inputs[e, k].T @ errors[e, k]`` of E networks and K tasks.

    Their inner products can be found in two ways that differ in cost, not in result:

    - multiply J out, ``(E, K, I, D)``, then ``J @ J.T``: the first costs as much as an ordinary
      weight gradient, the second K / B times that and the memory traffic of J;
    - never multiply it out: ``<a.T @ d, a'.T @ d'> = sum((a @ a'.T) * (d @ d'.T))``, which costs
      K B (I + D) / (I D) times an ordinary weight gradient, halved by symmetry. The weighted sum is
      one ordinary product then, of errors scaled by their task's weight.

    The second wins for small batches. Which is cheaper is decided by the shapes, as is whether a
    CPU keeps J for the weighted sum, or multiplies it out in pieces that never leave its caches.

    Args:
        inputs: ``(E, K, B, I)``, in the type that products are computed in.
        errors: ``(E, K, B, D)``.
    """

    def __init__(self, inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B D"]) -> None:
        self.inputs, self.errors = inputs, errors
        self._low = errors.to(inputs.dtype)
        self._length = inputs.shape[-1] * errors.shape[-1]
        self._kept: Tensor | None = None

    def rows(self) -> Float[Tensor, "E K I D"]:
        """Return J."""
        return self._unflatten(self._spaced_rows()[..., : self._length])

    def _unflatten(self, rows: Float[Tensor, "*batch ID"]) -> Float[Tensor, "*batch I D"]:
        return rows.view(*rows.shape[:-1], self.inputs.shape[-1], self.errors.shape[-1])

    def _spaced_rows(self) -> Float[Tensor, "E K _"]:
        """Return the rows of J with unused numbers between them, multiplied out once."""
        if self._kept is None:
            self._kept = self._multiply_out()
        return self._kept

    def _multiply_out(self) -> Tensor:
        if dispatch.has_operators(self.errors):
            return _spaced_rows(self.inputs, self.errors)
        E, K = self.inputs.shape[:2]
        rows = torch.bmm(self.inputs.flatten(0, 1).mT, self._low.flatten(0, 1))
        return rows.to(self.errors.dtype).view(E, K, -1)

    def gramian(self) -> Float[Tensor, "K K"]:
        """Return ``J @ J.T``, summed over the E networks."""
        if not self.multiplies_out():
            return self._of_factors()
        if self._keeps_rows():
            return self._of_rows()
        return _gramian_in_pieces(self.inputs, self._low, self.errors.dtype)

    def combine(self, weights: Float[Tensor, " K"]) -> Float[Tensor, "E I D"]:
        """Return ``weights @ J``."""
        if self._kept is not None:
            return self._unflatten(weights @ self._kept[..., : self._length])
        scaled = (self.errors * weights[:, None, None]).to(self._low.dtype)
        product = multiply(self.inputs.flatten(1, 2).mT, scaled.flatten(1, 2))
        return product.to(self.errors.dtype)

    def multiplies_out(self) -> bool:
        """Tell which way to the Gramian is cheaper."""
        (_, K, B, I), D = self.inputs.shape, self.errors.shape[-1]  # noqa: E741
        return multiplying_out_is_cheaper(K, B, I, D)

    def _keeps_rows(self) -> bool:
        E, K, B, _ = self.errors.shape
        pays = B > FORGOTTEN or E * K * self._length < LARGE
        return pays or not dispatch.has_operators(self.errors)

    def _of_rows(self) -> Tensor:
        spaced = self._spaced_rows()
        if dispatch.has_operators(spaced):
            return _gramian_of_rows(spaced, self._length)
        return torch.bmm(spaced, spaced.mT).sum(dim=0)

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


def _room_for_rows(inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B D"]) -> Tensor:
    """Allocate the rows of J with unused numbers between them, ``(E, K, _)``.

    Those of a network are often a power of two long. One after the other, the same columns of all
    rows would compete for the same few lines of the caches.
    """
    (E, K, _, I), D = inputs.shape, errors.shape[-1]  # noqa: E741
    distance = I * D
    if distance > AT_A_TIME:
        distance = -(-distance // CACHE_WAY) * CACHE_WAY + AT_A_TIME + 16
    return errors.new_empty(E, K, distance)


@dispatch.operator("(Tensor inputs, Tensor errors) -> Tensor", _room_for_rows)
def _spaced_rows(inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B D"]) -> Tensor:
    """Multiply J out."""
    spaced = _room_for_rows(inputs, errors)
    I, D = inputs.shape[-1], errors.shape[-1]  # noqa: E741
    inputs, low = inputs.flatten(0, 1), errors.to(inputs.dtype).flatten(0, 1)
    rows = spaced.flatten(0, 1)
    if D <= THIN:
        blocks = rows[:, : I * D].unflatten(1, (I, D))
        blocks.copy_(multiply(low.mT, inputs).mT)
    else:
        _multiply_into(rows, inputs, low)
    return spaced


def _multiply_into(
    rows: Float[Tensor, "K _"], inputs: Float[Tensor, "K B I"], errors: Float[Tensor, "K B D"]
) -> None:
    """Write ``inputs[k].T @ errors[k]`` to the start of each row k."""
    (_, B, I), D = inputs.shape, errors.shape[-1]  # noqa: E741
    blocks = rows[:, : I * D].unflatten(1, (I, D))
    if inputs.dtype != rows.dtype:
        blocks.copy_(multiply(inputs.mT, errors))
    elif B <= FEW:
        _products(inputs.contiguous().numpy(), errors.numpy(), rows.numpy())
    else:
        torch.bmm(inputs.mT, errors, out=blocks)


def _room_for_gramian(spaced: Float[Tensor, "E K _"], length: int) -> Float[Tensor, "K K"]:
    del length
    return spaced.new_empty(spaced.shape[1], spaced.shape[1])


@dispatch.operator("(Tensor spaced, int length) -> Tensor", _room_for_gramian)
def _gramian_of_rows(spaced: Float[Tensor, "E K _"], length: int) -> Float[Tensor, "K K"]:
    """Return the inner products of rows of so many numbers each, summed over networks."""
    K = spaced.shape[1]
    gramian = torch.zeros(K, K, dtype=torch.float64)
    # With what lies between the rows: a kernel is several times faster without strides.
    _add_inner_products(spaced, length, gramian)
    return gramian.to(spaced.dtype)


def _add_inner_products(rows: Float[Tensor, "E K _"], length: int, gramian: Tensor) -> None:
    """Add those of the first `length` numbers of each row, summed over networks."""
    numbers = rows.numpy()
    _inner_products(numbers, length, gramian.numpy(), np.zeros(1, numbers.dtype))


def _room_for_gramian_in_pieces(inputs: Tensor, errors: Tensor, dtype: torch.dtype) -> Tensor:
    return errors.new_empty(errors.shape[1], inputs.shape[1], dtype=dtype)


@dispatch.operator(
    "(Tensor inputs, Tensor errors, ScalarType dtype) -> Tensor", _room_for_gramian_in_pieces
)
def _gramian_in_pieces(
    inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B D"], dtype: torch.dtype
) -> Float[Tensor, "K K"]:
    """Return the inner products of the rows of J, which is nowhere as a whole."""
    (E, K, _, I), D = inputs.shape, errors.shape[-1]  # noqa: E741
    # An odd number: pieces of tasks then lie apart by no power of two, see `_room_for_rows`.
    step = min(PIECE // (K * D), I - 1) | 1
    gramian = torch.zeros(K, K, dtype=torch.float64)
    room = errors.new_empty(K * step * D, dtype=dtype)
    for e in range(E):
        for first in range(0, I, step):
            piece = inputs[e, ..., first : first + step]
            length = piece.shape[-1] * D
            rows = room[: K * length].view(1, K, length)
            _multiply_into(rows[0], piece, errors[e])
            _add_inner_products(rows, length, gramian)
    return gramian.to(dtype)


@_kernel
def _products(inputs: NDArray[Any], errors: NDArray[Any], rows: NDArray[Any]) -> None:
    """Write ``inputs[t].T @ errors[t]`` to the start of each row t.

    Inputs of zero are passed over: after a ReLU they are half of all.
    """
    use_widest_vectors()
    tasks, B, I = inputs.shape  # noqa: E741
    D = errors.shape[-1]
    factors, places = np.zeros(B + 4, inputs.dtype), np.zeros(B + 4, np.int64)
    for t in range(tasks):
        for i in range(I):
            count = 0
            for place in range(B):
                factors[count], places[count] = inputs[t, place, i], place
                count += inputs[t, place, i] != 0
            factors[count : count + 4], places[count : count + 4] = 0, 0
            row = rows[t, i * D : (i + 1) * D]
            for first in range(0, max(count, 1), 4):
                a, b = errors[t, places[first]], errors[t, places[first + 1]]
                c, d = errors[t, places[first + 2]], errors[t, places[first + 3]]
                of_a, of_b = factors[first], factors[first + 1]
                of_c, of_d = factors[first + 2], factors[first + 3]
                if first == 0:
                    for n in range(D):
                        row[n] = of_a * a[n] + of_b * b[n] + of_c * c[n] + of_d * d[n]
                else:
                    for n in range(D):
                        row[n] += of_a * a[n] + of_b * b[n] + of_c * c[n] + of_d * d[n]


@_kernel
def _inner_products(
    rows: NDArray[Any], length: int, gramian: NDArray[np.float64], zeros: NDArray[Any]
) -> None:
    """Add the rows' inner products to a symmetric matrix; `zeros` are of the rows' type.

    A general product computes each of them twice, and is at its slowest with so few rows. Below the
    diagonal `gramian` holds anything until the end.
    """
    use_widest_vectors()
    E, K, _ = rows.shape
    zero = zeros[0]
    for e in range(E):
        for first in range(0, length, AT_A_TIME):
            part = slice(first, min(length, first + AT_A_TIME))
            for i in range(0, K - 2, 3):
                # Three rows by four, from the last on: a number that was read serves several sums.
                x, y, z = rows[e, i, part], rows[e, i + 1, part], rows[e, i + 2, part]
                j = K - 4
                while j >= 0 and j > i - 4:
                    a, b = rows[e, j, part], rows[e, j + 1, part]
                    c, d = rows[e, j + 2, part], rows[e, j + 3, part]
                    xa, xb, xc, xd = zero, zero, zero, zero
                    ya, yb, yc, yd = zero, zero, zero, zero
                    za, zb, zc, zd = zero, zero, zero, zero
                    for p in range(len(x)):
                        xa += x[p] * a[p]
                        ya += y[p] * a[p]
                        za += z[p] * a[p]
                        xb += x[p] * b[p]
                        yb += y[p] * b[p]
                        zb += z[p] * b[p]
                        xc += x[p] * c[p]
                        yc += y[p] * c[p]
                        zc += z[p] * c[p]
                        xd += x[p] * d[p]
                        yd += y[p] * d[p]
                        zd += z[p] * d[p]
                    for row, (of_a, of_b, of_c, of_d) in enumerate(
                        ((xa, xb, xc, xd), (ya, yb, yc, yd), (za, zb, zc, zd))
                    ):
                        gramian[i + row, j] += of_a
                        gramian[i + row, j + 1] += of_b
                        gramian[i + row, j + 2] += of_c
                        gramian[i + row, j + 3] += of_d
                    j -= 4
                for k in range(i, j + 4):
                    a = rows[e, k, part]
                    xa, ya, za = zero, zero, zero
                    for p in range(len(x)):
                        xa += x[p] * a[p]
                        ya += y[p] * a[p]
                        za += z[p] * a[p]
                    gramian[i, k] += xa
                    gramian[i + 1, k] += ya
                    gramian[i + 2, k] += za
            for i in range(K // 3 * 3, K):
                for k in range(i, K):
                    x, a, xa = rows[e, i, part], rows[e, k, part], zero
                    for p in range(len(x)):
                        xa += x[p] * a[p]
                    gramian[i, k] += xa
    for i in range(K):
        for j in range(i):
            gramian[i, j] = gramian[j, i]
