"""Kernels for GPUs, of what works on K numbers or K x K: there, launches are what costs.

With torch's operations PCGrad takes four launches a visit and GradNorm seventy; here each is one.
They compute what the kernels for a CPU do, and `mtrl.dispatch` tells when. ``TRITON_INTERPRET=1``
makes them run on a CPU, slowly: so they are tested where there is no GPU. A compiler of updates
sees each as one operation.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float64, Int
from torch import Tensor

from . import dispatch
from .weighting import gradnorm, pcgrad

_INFINITY = tl.constexpr(math.inf)


def _kernel(function: Callable[..., None]) -> Any:
    """Let Triton compile a function, without what checks its annotations."""
    return triton.jit(inspect.unwrap(function))


def _block(count: int) -> int:
    """Return how many numbers a program holds, of which so many count."""
    return max(16, int(triton.next_power_of_2(count)))


def _launch(kernel: Any, programs: int, *args: Any, warps: int = 1, **constants: Any) -> None:
    """Run so many programs of a kernel, with so many warps each, where its first argument lies."""
    with torch.cuda.device_of(args[0]):
        kernel[(programs,)](*args, **constants, num_warps=warps)


@dispatch.operator("(Tensor gramian, Tensor order) -> Tensor", pcgrad.room_for_coefficients)
def project(
    gramian: Float[Tensor, "K K"], order: Int[Tensor, "K M"], coefficients: Float64[Tensor, "K K"]
) -> Callable[[], object]:
    """Walk PCGrad's projections; see `mtrl.weighting.pcgrad.project`."""
    K, M = order.shape
    calls = dispatch.InTurn()
    if order.stride(1) != 1:
        order = calls.contiguous(order)
    given = calls.contiguous(gramian), order, coefficients, K, M, order.stride(0)
    calls.append(functools.partial(_launch, _project, K, *given, BLOCK=_block(K)))
    return calls


@_kernel
def _project(  # type: ignore[no-untyped-def]
    gramian, order, coefficients, K, M, ORDERS_APART, BLOCK: tl.constexpr
):
    """Project one task's gradient, as the paper has it."""
    task = tl.program_id(0)
    tasks = tl.arange(0, BLOCK)
    squares = tl.load(gramian + tasks * (K + 1), mask=tasks < K, other=0.0).to(tl.float64)
    counts = (tasks < K) & (tl.abs(squares) < _INFINITY)
    projects = counts & (squares > 0)  # zero projects nobody
    inverse = tl.where(projects, 1.0 / tl.where(projects, squares, 1.0), 0.0)
    is_own = counts & (tasks == task)
    own = tl.load(gramian + task * K + tasks, mask=counts, other=0.0).to(tl.float64)
    # <C[i] @ J, J[j]> for all j
    products = tl.where(tl.max(is_own.to(tl.int32), axis=0) > 0, own, 0.0)
    steps = tl.zeros_like(products)
    for visit in range(M):
        visited = tl.load(order + task * ORDERS_APART + visit)
        is_visited = tasks == visited
        product = tl.sum(tl.where(is_visited, products * inverse, 0.0), axis=0)
        step = tl.where(product < 0, product, 0.0)
        row = tl.load(gramian + visited * K + tasks, mask=counts, other=0.0).to(tl.float64)
        products = tl.where(step < 0, products - step * row, products)
        steps += tl.where(is_visited, step, 0.0)
    tl.store(coefficients + task * K + tasks, tl.where(is_own, 1.0, -steps), mask=tasks < K)


@dispatch.operator(
    "(Tensor gramian, Tensor losses, Tensor(a!)[] state, float alpha, float learning_rate) -> ()"
)
def learn(
    gramian: Float[Tensor, "K K"],
    losses: Float[Tensor, " K"],
    state: list[Tensor],
    alpha: float,
    learning_rate: float,
) -> Callable[[], object]:
    """Learn GradNorm's next weights, in place; see `mtrl.weighting.gradnorm`.

    Args:
        gramian: Whose diagonal holds the squared norms.
        losses: Of the tasks.
        state: Weights, initial losses, first and second moments ``(K,)``, number of steps ``()``.
        alpha: Strength of the pull towards equal rates.
        learning_rate: Adam's.
    """
    K = len(losses)
    calls = dispatch.InTurn()
    given = calls.contiguous(gramian), calls.contiguous(losses), *state
    constants: dict[str, Any] = {
        "ALPHA": alpha,
        "LEARNING_RATE": learning_rate,
        "LOSS_FLOOR": gradnorm.LOSS_FLOOR,
        "FIRST_DECAY": gradnorm.FIRST_DECAY,
        "SECOND_DECAY": gradnorm.SECOND_DECAY,
        "EPSILON": gradnorm.EPSILON,
        "MINIMUM": gradnorm.MINIMUM_WEIGHT,
        "BLOCK": _block(K),
    }
    calls.append(functools.partial(_launch, _learn, 1, *given, K, **constants))
    return calls


@_kernel
def _learn(  # type: ignore[no-untyped-def]
    gramian,
    losses,
    weights,
    initial_losses,
    first_moment,
    second_moment,
    steps,
    K,
    ALPHA: tl.constexpr,
    LEARNING_RATE: tl.constexpr,
    LOSS_FLOOR: tl.constexpr,
    FIRST_DECAY: tl.constexpr,
    SECOND_DECAY: tl.constexpr,
    EPSILON: tl.constexpr,
    MINIMUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Take one step, in double precision all through: numbers alone would be single."""
    alpha = tl.full((), ALPHA, tl.float64)
    first_decay = tl.full((), FIRST_DECAY, tl.float64)
    second_decay = tl.full((), SECOND_DECAY, tl.float64)
    tasks = tl.arange(0, BLOCK)
    inside = tasks < K
    squares = tl.load(gramian + tasks * (K + 1), mask=inside, other=0.0).to(tl.float64)
    norms = tl.sqrt(tl.where(squares < 0, 0.0, squares))  # NaN stays
    loss = tl.load(losses + tasks, mask=inside, other=0.0).to(tl.float64)
    weight = tl.load(weights + tasks, mask=inside, other=0.0).to(tl.float64)
    initial = tl.load(initial_losses + tasks, mask=inside, other=0.0)
    taken = tl.load(steps)

    is_finite = (tl.abs(norms) < _INFINITY) & (tl.abs(loss) < _INFINITY)
    finite = tl.min(is_finite.to(tl.int32), axis=0)
    first = tl.where(taken == 0, finite, 0)
    initial = tl.where(first > 0, loss.to(initial.dtype), initial)
    tl.store(initial_losses + tasks, initial, mask=inside)
    initial = initial.to(tl.float64)

    floor = tl.full((), LOSS_FLOOR, tl.float64) * (tl.sum(initial, axis=0) / K)
    floor = tl.maximum(floor, tl.full((), 1e-8, tl.float64))
    ratios = tl.where(loss > 0, loss, 0.0) / tl.maximum(initial, floor)
    mean = tl.sum(ratios, axis=0) / K
    rates = tl.where(mean > 0, ratios / tl.where(mean > 0, mean, 1.0), 1.0)
    # 0 ** 0 is 1, as alpha = 0 demands also of a task at zero loss.
    powers = tl.exp(alpha * tl.log(tl.where(rates > 0, rates, 1.0)))
    if ALPHA > 0:
        powers = tl.where(rates == 0, 0.0, powers)
    surplus = weight * norms - tl.sum(weight * norms, axis=0) / K * powers
    gradient = tl.where(surplus > 0, norms, -norms)
    gradient = tl.where(surplus == 0, 0.0, gradient)
    square = gradient * gradient
    # Finite numbers can still overflow on the way; Adam's moments would never recover.
    is_finite = (surplus == surplus) & (square.to(tl.float32) < _INFINITY)
    good = finite * tl.min(tl.where(inside, is_finite.to(tl.int32), 1), axis=0) > 0

    old_first = tl.load(first_moment + tasks, mask=inside, other=0.0).to(tl.float64)
    old_second = tl.load(second_moment + tasks, mask=inside, other=0.0).to(tl.float64)
    new_first = gradient + first_decay * (old_first - gradient)
    new_second = square + second_decay * (old_second - square)
    count = (taken + 1).to(tl.float64)
    first_share = 1.0 - tl.exp(count * tl.log(first_decay))
    second_share = 1.0 - tl.exp(count * tl.log(second_decay))
    scale = tl.sqrt(new_second / second_share) + tl.full((), EPSILON, tl.float64)
    step = tl.full((), LEARNING_RATE, tl.float64) * (new_first / first_share) / scale
    moved = tl.maximum(weight - step, tl.full((), MINIMUM, tl.float64))
    moved = tl.where(inside, moved, 0.0)
    moved = moved * (K / tl.sum(moved, axis=0))

    tl.store(steps, tl.where(good, taken + 1, taken))
    new_first = tl.where(good, new_first, old_first)
    new_second = tl.where(good, new_second, old_second)
    moved = tl.where(good, moved, weight)
    tl.store(first_moment + tasks, new_first.to(tl.float32), mask=inside)
    tl.store(second_moment + tasks, new_second.to(tl.float32), mask=inside)
    tl.store(weights + tasks, moved.to(tl.float32), mask=inside)


def _room_for_summary(gramian: Float[Tensor, "K K"]) -> Float[Tensor, " K+2"]:
    return gramian.new_empty(len(gramian) + 2, dtype=torch.float32)


@dispatch.operator("(Tensor gramian) -> Tensor", _room_for_summary)
def summarise(
    gramian: Float[Tensor, "K K"], summary: Float[Tensor, " K+2"]
) -> Callable[[], object]:
    """Find conflict rate, smallest cosine and norms; see `mtrl.metrics.conflict_metrics`."""
    K = len(gramian)
    calls = dispatch.InTurn()
    given = calls.contiguous(gramian, torch.float32), summary
    block = _block(K)
    # A warp alone takes 64 x 64 numbers by 14,000 instructions, of which each comes from memory.
    warps = 8 if block >= 64 else 1
    calls.append(functools.partial(_launch, _summarise, 1, *given, K, warps=warps, BLOCK=block))
    return calls


@_kernel
def _summarise(gramian, summary, K, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Look at each pair once."""
    tasks = tl.arange(0, BLOCK)
    squares = tl.load(gramian + tasks * (K + 1), mask=tasks < K, other=0.0)
    norms = tl.sqrt_rn(tl.where(squares < 0, 0.0, squares))  # NaN stays
    lengths = norms[:, None] * norms[None, :]
    pairs = (tasks[:, None] < tasks[None, :]) & (tasks[None, :] < K)
    products = tl.load(gramian + tasks[:, None] * K + tasks[None, :], mask=pairs, other=0.0)
    cosines = tl.div_rn(products, tl.where(lengths > 0, lengths, 1.0))
    conflicts = tl.sum(tl.sum((pairs & (cosines < 0)).to(tl.int32), axis=1), axis=0)
    smallest = tl.min(tl.min(tl.where(pairs, cosines, 1.0), axis=1), axis=0)
    unknown = tl.max(tl.max((pairs & (cosines != cosines)).to(tl.int32), axis=1), axis=0)
    smallest = tl.where(unknown > 0, float("nan"), smallest)
    number = tl.maximum(K * (K - 1) // 2, 1)
    tl.store(summary, conflicts.to(norms.dtype) / number)
    tl.store(summary + 1, smallest)
    tl.store(summary + 2 + tasks, norms, mask=tasks < K)
