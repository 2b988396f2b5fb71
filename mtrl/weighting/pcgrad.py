"""Projecting conflicting gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy.typing import NDArray
from torch import Tensor

from .. import dispatch
from ..bf16 import wide_type
from ..compiler import Compiler, use_widest_vectors
from ..seeding import restore_generator
from ..types import State

EVEN = 16
"""Numbers are compared in multiples of so many: what is left of a register takes as long as ten."""

LESS = 2.0**-40
"""Less than random numbers of float32 can differ by, for as many tasks as there may be."""

_compiler = Compiler("pcgrad", Path(__file__))
_kernel = _compiler.kernel


class PCGrad:
    """Projects each task's gradient off those it conflicts with, then adds them up.

    Algorithm 1 of Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020
    (https://arxiv.org/abs/2001.06782): task i visits the others in a random order of its own, and
    where its running gradient has a negative inner product with the *original* gradient of task j,
    the component along that gradient is removed.

    Every running gradient stays a combination of the K original ones, so its K coefficients and
    the Gramian are all the algorithm needs; the cost does not depend on the number of parameters.

    Args:
        generator: Where the visiting orders come from, on the Gramian's device; its state belongs
            to this object's state.
        reduction: "sum" as in the paper, or "mean", which divides by K.

    Example:
        >>> J = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
        >>> pcgrad = PCGrad(torch.Generator().manual_seed(0))
        >>> pcgrad(J @ J.T, losses=torch.ones(2))
        tensor([2.2222, 1.5789])
    """

    needs_gramian = True

    def __init__(
        self, generator: torch.Generator, *, reduction: Literal["sum", "mean"] = "sum"
    ) -> None:
        if reduction not in ("sum", "mean"):
            raise ValueError(f'`reduction` must be "sum" or "mean", found {reduction!r}.')
        self._generator = generator
        self._reduction = reduction
        self._initial_state = generator.get_state()

    def __call__(
        self, gramian: Float[Tensor, "K K"], losses: Float[Tensor, " K"]
    ) -> Float[Tensor, " K"]:
        """Return the weights of the projected sum. See `mtrl.types.Weighting`.

        A task whose gradient is zero projects nobody. One whose gradient is not finite is left out:
        its weight is 0.
        """
        del losses
        K = len(gramian)
        weights = project(gramian, self.draw_order(K, gramian.device)).sum(dim=0)
        if self._reduction == "mean":
            weights = weights / K
        return weights.to(gramian.dtype)

    def draw_order(self, num_tasks: int, device: torch.device) -> Int[Tensor, "K K-1"]:
        """Draw, for each task, a random order of the other tasks."""
        keys = torch.rand(num_tasks, num_tasks, generator=self._generator, device=device)
        if dispatch.has_operators(keys):
            return _order_others(keys)
        keys.diagonal().fill_(2.0)  # a task itself sorts last, and is cut off
        return keys.argsort(dim=1)[:, : num_tasks - 1]

    def state_dict(self) -> State:
        """Return the state of the generator of visiting orders."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        """Go on with the visiting orders of a saved state."""
        restore_generator(self._generator, state["generator"])

    def reset(self) -> None:
        """Draw the same orders again as after construction."""
        self._generator.set_state(self._initial_state)


def _room_for_order(keys: Float[Tensor, "K K"]) -> Int[Tensor, "K K-1"]:
    K = len(keys)
    return keys.new_empty(K, K - 1, dtype=torch.int64)


@dispatch.operator("(Tensor keys) -> Tensor", _room_for_order)
def _order_others(keys: Float[Tensor, "K K"], order: Int[Tensor, "K K-1"]) -> Callable[[], object]:
    return functools.partial(_rank, keys.numpy(), order.numpy())


@_compiler.vectorised_kernel
def _rank(keys: NDArray[np.float32], order: NDArray[np.int64]) -> None:
    """Count how many come before each: of so few, that is faster than to sort them."""
    use_widest_vectors()
    K = len(keys)
    even = -(-K // EVEN) * EVEN
    row, before = np.zeros(even), np.empty(even)
    for i in range(K):
        for j in range(K):
            row[j] = keys[i, j] + j * LESS  # of two that are the same the first
        row[i] = 2.0  # comes last
        before[:] = 0
        for j in range(K):
            key = row[j]
            for other in range(even):
                before[other] += 1.0 if key < row[other] else 0.0
        for j in range(K):
            if j != i:
                order[i, int(before[j])] = j


def project(gramian: Float[Tensor, "K K"], order: Int[Tensor, "K M"]) -> Float64[Tensor, "K K"]:
    """Walk PCGrad's projections on coefficients, in double precision.

    Args:
        gramian: ``G = J @ J.T``.
        order: Row i holds the tasks that task i visits, first to last.

    Returns:
        Coefficients ``C``: the projected gradient of task i is ``C[i] @ J``. Rows and columns of
        tasks whose gradient is not finite are zero.
    """
    if dispatch.has_operators(gramian):
        return _project_one_by_one(gramian.to(wide_type(gramian.dtype)), order)
    if dispatch.has_triton(gramian):
        from .. import triton_kernels

        return triton_kernels.project(gramian, order)
    return _project_in_lock_step(gramian.double(), order)


def room_for_coefficients(
    gramian: Float[Tensor, "K K"], order: Int[Tensor, "K M"]
) -> Float64[Tensor, "K K"]:
    """Allocate what `project` returns."""
    del order
    return gramian.new_empty(gramian.shape, dtype=torch.float64)


@dispatch.operator("(Tensor gramian, Tensor order) -> Tensor", room_for_coefficients)
def _project_one_by_one(
    gramian: Float[Tensor, "K K"],
    order: Int[Tensor, "K M"],
    coefficients: Float64[Tensor, "K K"],
) -> Callable[[], object]:
    return functools.partial(_walk, *(each.numpy() for each in (gramian, order, coefficients)))


@_kernel
def _walk(given: NDArray[Any], order: NDArray[np.int64], coefficients: NDArray[np.float64]) -> None:
    """Project as the paper has it, one task after the other: on a CPU, calls are what costs."""
    K = len(given)
    gramian = given.astype(np.float64)
    clean, inverse = np.zeros((K, K)), np.zeros(K)
    coefficients[:] = 0
    for i in range(K):
        if np.isfinite(gramian[i, i]):
            coefficients[i, i] = 1.0
            if gramian[i, i] > 0:  # zero projects nobody
                inverse[i] = 1 / gramian[i, i]
            for j in range(K):
                clean[i, j] = gramian[i, j] if np.isfinite(gramian[j, j]) else 0.0
    for i in range(K):
        products = clean[i].copy()  # <C[i] @ J, J[j]> for all j
        for visited in range(order.shape[1]):
            j = order[i, visited]
            if products[j] < 0:
                step = products[j] * inverse[j]
                coefficients[i, j] -= step
                for other in range(K):
                    products[other] -= step * clean[j, other]


def _project_in_lock_step(
    gramian: Float64[Tensor, "K K"], order: Int[Tensor, "K M"]
) -> Float64[Tensor, "K K"]:
    """Project all tasks' gradients at once: where there is no kernel, operations are what costs."""
    finite = gramian.diagonal().isfinite()
    gramian = torch.where(finite[:, None] & finite[None, :], gramian, 0.0)
    squared_norms = gramian.diagonal()
    inverse = torch.where(squared_norms > 0, 1 / squared_norms, 0.0)  # zero projects nobody
    # <C[i] @ J, J[j]> for all i and j. Keeping these up to date instead of C takes four small
    # operations a visit.
    products, steps = gramian.clone(), torch.zeros_like(inverse[order])
    visits = (_columns(order), _columns(inverse[order]), gramian[order].unbind(1), _columns(steps))
    for others, scale, visited, step in zip(*visits, strict=True):
        torch.mul(products.gather(1, others).clamp_max_(0), scale, out=step)
        products.addcmul_(visited, step, value=-1)
    return finite.double().diag().scatter_add_(1, order, -steps)


def _columns(matrix: Tensor) -> tuple[Tensor, ...]:
    """View each column of a matrix ``(K, M)`` as one of its own, ``(K, 1)``."""
    return matrix.mT.unsqueeze(-1).unbind(0)
