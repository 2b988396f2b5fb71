"""K products of tall matrices, their inner products and weighted sums, multiplied out or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from . import bf16, dispatch
from .bf16 import numbers, read, rounded, wide_type
from .compiler import Compiler, use_widest_vectors
from .device import has_bf16
from .inner_products import BYTES_AT_A_TIME, add_inner_products, takes_bf16
from .products import THIN, multiply

ELEMENT_COST = 35
"""Writing and reading one number of J takes as long as this many multiplications and additions
inside a matrix product, or so: an estimate that decides between two ways of equal result."""

ELEMENT_COST_BF16 = 5
"""The same where J is kept in bf16: half as many bytes, which the library multiplies out, and a
kernel their inner products, at the rate of a large product."""

TASKS_AT_ONCE = 10
"""Tasks in one strip of a symmetric product: fewer multiply less above the diagonal, more fill the
processor better."""

LARGE = 500_000
"""Numbers of J, 2 MB, that do not stay in a core's own caches: kept, they go to memory and back."""

PIECE = 400_000
"""About so many are multiplied out at a time where J is not kept."""

COLUMNS = 1024
"""Of a weighted sum, found at a time: they stay in the innermost cache."""

FORGOTTEN = 16
"""Up to so many rows a task multiplying once more for the weighted sum takes less time than a large
J takes on that way."""

CACHE_WAY = 4096
"""Bytes after which addresses fall into the same lines of the innermost cache, or a multiple."""

FEW = 8 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 32
"""Up to so many rows a task a kernel multiplies J out faster than the library, which is slow at
products that sum over little, and knows of no zeros; less so with AVX-512."""

_kernel = Compiler("blocks", Path(__file__), Path(bf16.__file__)).vectorised_kernel


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
        errors: ``(E, K, B, D)``, rounded to the same, but not where they are one column. Results
            are at least of float32.
    """

    def __init__(self, inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B D"]) -> None:
        self._wide = wide_type(errors.dtype)
        self._is_column = errors.shape[-1] == 1
        self.inputs = inputs
        self.errors = errors.to(self._wide if self._is_column else inputs.dtype)
        self._length = inputs.shape[-1] * errors.shape[-1]
        self._kept: Tensor | None = None

    def rows(self) -> Float[Tensor, "E K I D"]:
        """Return J."""
        return self._unflatten(self._spaced_rows()[..., : self._length].to(self._wide))

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
        inputs = self.inputs.to(self.errors.dtype).flatten(0, 1)
        return torch.bmm(inputs.mT, self.errors.flatten(0, 1)).to(self._wide).view(E, K, -1)

    def gramian(self) -> Float[Tensor, "K K"]:
        """Return ``J @ J.T``, summed over the E networks."""
        if not self.multiplies_out():
            return self._of_factors()
        if self._keeps_rows():
            return self._of_rows()
        return _gramian_in_pieces(self.inputs, self.errors)

    def combine(self, weights: Float[Tensor, " K"]) -> Float[Tensor, "E I D"]:
        """Return ``weights @ J``."""
        # A column's J is found in one pass over the inputs, as is its weighted sum without it.
        if self._kept is not None or (self._is_column and dispatch.on_cpu(self.errors)):
            return self._unflatten(self._weigh_rows(weights, self._spaced_rows()))
        product = multiply(self.inputs.flatten(1, 2).mT, self._scaled(weights).flatten(1, 2))
        return product.to(self._wide)

    def _weigh_rows(self, weights: Tensor, kept: Tensor) -> Tensor:
        if kept.dtype == self._wide:
            return weights @ kept[..., : self._length]
        return _weighted_sum(weights, kept, self._length)

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
        cost = ELEMENT_COST_BF16 if self._rows_are_bf16() else ELEMENT_COST
        return self._is_column or multiplying_out_is_cheaper(K, B, I, D, cost)

    def _keeps_rows(self) -> bool:
        E, K, B, _ = self.errors.shape
        if self._rows_are_bf16() or not dispatch.has_operators(self.errors):
            return True  # rows of bf16 take half the room; torch's operations know no pieces
        return B > FORGOTTEN or E * K * self._length < LARGE

    def _rows_are_bf16(self) -> bool:
        return dispatch.has_operators(self.errors) and _type_of_rows(self.errors) != self._wide

    def _of_rows(self) -> Tensor:
        if dispatch.has_operators(self.errors):
            self._kept, gramian = _rows_and_gramian(self.inputs, self.errors)
            return gramian
        rows = self._spaced_rows()
        return torch.bmm(rows, rows.mT).sum(dim=0)

    def _of_factors(self) -> Tensor:
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
) -> bool:
    """Count operations for K tasks, B rows each, of I inputs and D outputs; see `TaskBlocks`."""
    strips = -(-K // TASKS_AT_ONCE)
    share = (strips + 1) / (2 * strips)  # of the pairs that are on or above the diagonal
    factors = 2 * (K * B) ** 2 * (I + D) * share
    return factors > I * D * (K * K + element_cost * K)


def _inner(vectors: Tensor, strip: slice, rest: slice) -> Tensor:
    return multiply(vectors[:, strip].flatten(1, 2), vectors[:, rest].flatten(1, 2).mT)


def _type_of_rows(errors: Tensor) -> torch.dtype:
    """Return what J is kept in: bf16 where products are, and kernels can."""
    keeps_bf16 = has_bf16(errors.device) and takes_bf16()
    return errors.dtype if keeps_bf16 else wide_type(errors.dtype)


def _room_for_rows(inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B D"]) -> Tensor:
    """Allocate the rows of J with unused numbers between them, ``(E, K, _)``.

    Those of a network are often a power of two long. One after the other, the same columns of all
    rows would compete for the same few lines of the caches.
    """
    (E, K, _, I), D = inputs.shape, errors.shape[-1]  # noqa: E741
    dtype = _type_of_rows(errors)
    distance = I * D * dtype.itemsize
    if distance > BYTES_AT_A_TIME:
        distance = -(-distance // CACHE_WAY) * CACHE_WAY + BYTES_AT_A_TIME + 64
    return errors.new_empty(E, K, distance // dtype.itemsize, dtype=dtype)


@dispatch.operator("(Tensor inputs, Tensor errors) -> Tensor", _room_for_rows)
def _spaced_rows(inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B D"]) -> Tensor:
    """Multiply J out."""
    spaced = _room_for_rows(inputs, errors)
    _multiply_into(spaced.flatten(0, 1), inputs.flatten(0, 1), errors.flatten(0, 1))
    return spaced


def _multiply_into(
    rows: Float[Tensor, "K _"], inputs: Float[Tensor, "K B I"], errors: Float[Tensor, "K B D"]
) -> None:
    """Write ``inputs[k].T @ errors[k]`` to the start of each row k."""
    (_, B, I), D = inputs.shape, errors.shape[-1]  # noqa: E741
    blocks = rows[:, : I * D].unflatten(1, (I, D))
    if D == 1:
        _sum_up(numbers(inputs), errors.numpy(), rows.numpy())
    elif D <= THIN:
        blocks.copy_(multiply(errors.mT, inputs).mT)
    elif inputs.dtype != rows.dtype:
        blocks.copy_(multiply(inputs.mT, errors))
    elif B <= FEW and rows.dtype != torch.bfloat16:
        _products(inputs.contiguous().numpy(), errors.numpy(), rows.numpy())
    else:
        torch.bmm(inputs.mT, errors, out=blocks)


def _room_for_rows_and_gramian(inputs: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    return _room_for_rows(inputs, errors), _room_for_gramian(inputs, errors)


@dispatch.operator("(Tensor inputs, Tensor errors) -> (Tensor, Tensor)", _room_for_rows_and_gramian)
def _rows_and_gramian(
    inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B D"]
) -> tuple[Tensor, Float[Tensor, "K K"]]:
    """Multiply J out; return it and the inner products of its rows, summed over networks."""
    K, length = inputs.shape[1], inputs.shape[-1] * errors.shape[-1]
    spaced = _spaced_rows(inputs, errors)
    gramian = torch.zeros(K, K, dtype=torch.float64)
    # With what lies between the rows: a kernel is several times faster without strides.
    add_inner_products(spaced, length, gramian)
    return spaced, gramian.to(wide_type(spaced.dtype))


def _room_for_gramian(inputs: Tensor, errors: Tensor) -> Tensor:
    K = inputs.shape[1]
    return errors.new_empty(K, K, dtype=wide_type(errors.dtype))


@dispatch.operator("(Tensor inputs, Tensor errors) -> Tensor", _room_for_gramian)
def _gramian_in_pieces(
    inputs: Float[Tensor, "E K B I"], errors: Float[Tensor, "E K B D"]
) -> Float[Tensor, "K K"]:
    """Return the inner products of the rows of J, which is nowhere as a whole."""
    (E, K, _, I), D = inputs.shape, errors.shape[-1]  # noqa: E741
    dtype = _type_of_rows(errors)
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
            add_inner_products(rows, length, gramian)
    return gramian.to(wide_type(errors.dtype))


def _room_for_sum(weights: Tensor, spaced: Float[Tensor, "E K _"], length: int) -> Tensor:
    return weights.new_empty(len(spaced), length)


@dispatch.operator("(Tensor weights, Tensor spaced, int length) -> Tensor", _room_for_sum)
def _weighted_sum(
    weights: Float[Tensor, " K"], spaced: Float[Tensor, "E K _"], length: int
) -> Float[Tensor, "E length"]:
    """Return the weighted sums of the rows' first numbers."""
    result = _room_for_sum(weights, spaced, length)
    _add_up(weights.numpy(), numbers(spaced), result.numpy())
    return result


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
def _add_up(weights: NDArray[Any], rows: NDArray[Any], result: NDArray[Any]) -> None:
    """Write the weighted sums of rows, four rows at a time."""
    use_widest_vectors()
    E, K, _ = rows.shape
    length = result.shape[1]
    for e in range(E):
        for first in range(0, length, COLUMNS):
            part = slice(first, min(length, first + COLUMNS))
            out = result[e, part]
            for p in range(len(out)):
                out[p] = 0
            for k in range(0, K, 4):
                # The last row stands in for those that are missing, and counts as nothing.
                b, c, d = min(k + 1, K - 1), min(k + 2, K - 1), min(k + 3, K - 1)
                of_w, of_x = weights[k], weights[b] * (k + 1 < K)
                of_y, of_z = weights[c] * (k + 2 < K), weights[d] * (k + 3 < K)
                w, x, y, z = rows[e, k, part], rows[e, b, part], rows[e, c, part], rows[e, d, part]
                for p in range(len(out)):
                    of_two = of_w * read(w[p]) + of_x * read(x[p])
                    out[p] += of_two + of_y * read(y[p]) + of_z * read(z[p])


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


@_kernel
def _sum_up(inputs: NDArray[Any], errors: NDArray[Any], rows: NDArray[Any]) -> None:
    """Write the inputs of each task, summed with its errors' one column, to the start of a row."""
    use_widest_vectors()
    tasks, B, I = inputs.shape  # noqa: E741
    for t in range(tasks):
        out = rows[t, :I]
        for i in range(I):
            out[i] = 0
        for b in range(B):
            row, error = inputs[t, b], errors[t, b, 0]
            for i in range(I):
                out[i] += error * read(row[i])
