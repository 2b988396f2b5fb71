"""Balancing gradient norms."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from .. import dispatch
from ..bf16 import wide_type
from ..compiler import Compiler
from ..state_tree import require_form
from ..types import State

MINIMUM_WEIGHT = 1e-3
"""No task is switched off for good: weights stay above this before they are rescaled."""

LOSS_FLOOR = 1e-3
"""An initial loss counts as at least this share of the mean initial loss."""

FIRST_DECAY, SECOND_DECAY, EPSILON = 0.9, 0.999, 1e-12
"""Adam's. Norms differ by orders of magnitude between tasks and over training, so that what is
added to a scale is as good as nothing."""

_kernel = Compiler("gradnorm", Path(__file__)).kernel


class GradNorm:
    """Learns loss weights under which every task trains at a similar rate.

    Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
    Networks", ICML 2018 (https://arxiv.org/abs/1711.02257). With ``n_i`` the norm of task i's
    gradient, ``r_i = (L_i(t) / L_i(0)) / mean`` its inverse training rate, and the target
    ``mean(w n) * r_i ** alpha`` held constant, the weights descend ``sum_i |w_i n_i - target_i|``.
    The derivative is ``n_i * sign(w_i n_i - target_i)``, so no second backward pass is needed.
    Weights stay positive and sum to K. A task that lags (``r_i > 1``) gains weight.

    Norms are over all shared parameters. The paper takes the last shared layer to save time; here
    the Gramian's diagonal holds the whole norm for nothing, and it balances what is added up.

    The losses that judge the rates must not be negative. An actor's loss changes sign: give its
    weighting the critics' losses, or ``alpha = 0``, which equalises norms and ignores losses.

    Args:
        num_tasks: K.
        alpha: Strength of the pull towards equal rates, at least 0; 0 equalises norms only.
        learning_rate: Adam's, for the weights.
        device: Where losses and Gramians will be.

    Raises:
        ValueError: If a number is out of range.
    """

    needs_gramian = True

    def __init__(
        self,
        num_tasks: int,
        *,
        alpha: float = 0.12,
        learning_rate: float = 1e-3,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_tasks < 1:
            raise ValueError(f"`num_tasks` must be at least 1, found {num_tasks}.")
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"`alpha` must be at least 0 and finite, found {alpha}.")
        if not 0 < learning_rate < float("inf"):
            raise ValueError(f"`learning_rate` must be positive and finite, found {learning_rate}.")
        self.alpha = alpha
        self.learning_rate = learning_rate
        self.weights = torch.ones(num_tasks, device=device)
        self.initial_losses = torch.zeros(num_tasks, device=device)
        self._first_moment = torch.zeros(num_tasks, device=device)
        self._second_moment = torch.zeros(num_tasks, device=device)
        self._steps = torch.zeros((), device=device)

    def __call__(
        self, gramian: Float[Tensor, "K K"], losses: Float[Tensor, " K"]
    ) -> Float[Tensor, " K"]:
        """Return this step's weights, and learn the next one's. See `mtrl.types.Weighting`.

        Where a loss or norm is not finite nothing is learned from this step.

        Raises:
            ValueError: If there are more or fewer tasks than weights.
        """
        K = len(self.weights)
        if gramian.shape != (K, K) or losses.shape != (K,):
            raise ValueError(
                f"`gramian` and `losses` must be of {K} tasks, found shapes "
                f"{tuple(gramian.shape)} and {tuple(losses.shape)}."
            )
        weights = self.weights.clone()
        # In double precision all through: ratios of losses may overflow single, and K are few.
        state = list(self._buffers().values())
        if dispatch.has_operators(gramian):
            wide = (each.to(wide_type(each.dtype)) for each in (gramian, losses))
            _learn_in_one_call(*wide, state, self.alpha, self.learning_rate)
        elif dispatch.has_triton(gramian):
            from .. import triton_kernels

            triton_kernels.learn(gramian, losses, state, self.alpha, self.learning_rate)
        else:
            self._learn(gramian.diagonal().double().clamp_min(0).sqrt(), losses.double())
        return weights.to(losses.dtype)

    def _learn(self, norms: Float64[Tensor, " K"], losses: Float64[Tensor, " K"]) -> None:
        """Learn the next weights, without asking the device about anything."""
        finite = (losses.isfinite() & norms.isfinite()).all()
        first = finite & (self._steps == 0)
        self.initial_losses.copy_(torch.where(first, losses, self.initial_losses))
        gradient = self.weight_gradient(losses, norms)
        # Finite numbers can still overflow on the way; Adam's moments would never recover.
        finite = finite & gradient.square().float().isfinite().all()
        self._adam_step(torch.where(finite, gradient, 0.0), finite)

    def relative_rates(self, losses: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """Return ``r``, each task's ``L(t) / L(0)`` over their mean; above 1 for those behind."""
        floor = (LOSS_FLOOR * self.initial_losses.to(losses.dtype).mean()).clamp_min(1e-8)
        ratios = losses.clamp_min(0.0) / torch.maximum(self.initial_losses, floor)
        mean = ratios.mean()
        return torch.where(mean > 0, ratios / torch.where(mean > 0, mean, 1.0), 1.0)

    def weight_gradient(
        self, losses: Float[Tensor, " K"], norms: Float[Tensor, " K"]
    ) -> Float[Tensor, " K"]:
        """Return the derivative of the GradNorm loss with respect to the weights alone."""
        weighted = self.weights * norms
        # 0 ** 0 is 1, as alpha = 0 demands also of a task at zero loss.
        target = weighted.mean() * self.relative_rates(losses) ** self.alpha
        return norms * torch.sign(weighted - target)

    def _adam_step(self, gradient: Tensor, finite: Tensor) -> None:
        """Take an Adam step on the weights where `finite`, without asking the device about it."""
        steps = self._steps.double() + 1
        first = torch.lerp(gradient, self._first_moment.double(), FIRST_DECAY)
        second = torch.lerp(gradient.square(), self._second_moment.double(), SECOND_DECAY)
        scale = (second / (1 - SECOND_DECAY**steps)).sqrt() + EPSILON
        weights = self.weights - self.learning_rate * (first / (1 - FIRST_DECAY**steps)) / scale
        weights = weights.clamp_min(MINIMUM_WEIGHT)
        weights = weights * (len(weights) / weights.sum())
        for old, new in (
            (self._steps, steps),
            (self._first_moment, first),
            (self._second_moment, second),
            (self.weights, weights),
        ):
            old.copy_(torch.where(finite, new, old))

    def state_dict(self) -> State:
        """Return weights, initial losses and Adam's moments."""
        return {name: tensor.clone() for name, tensor in self._buffers().items()}

    def load_state_dict(self, state: State) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: An entry is of another number of tasks; nothing has changed.
        """
        require_form(state, self._buffers())
        for name, tensor in self._buffers().items():
            tensor.copy_(state[name])

    def reset(self) -> None:
        """Forget weights, initial losses and moments."""
        for tensor in self._buffers().values():
            tensor.zero_()
        self.weights.fill_(1.0)

    def _buffers(self) -> dict[str, Tensor]:
        return {
            "weights": self.weights,
            "initial_losses": self.initial_losses,
            "first_moment": self._first_moment,
            "second_moment": self._second_moment,
            "steps": self._steps,
        }


@dispatch.operator(
    "(Tensor gramian, Tensor losses, Tensor(a!)[] state, float alpha, float learning_rate) -> ()"
)
def _learn_in_one_call(
    gramian: Float[Tensor, "K K"],
    losses: Float[Tensor, " K"],
    state: list[Tensor],
    alpha: float,
    learning_rate: float,
) -> Callable[[], object]:
    """Do what `GradNorm._learn` does: on a CPU, calls are what costs, not what they do."""
    given = gramian.numpy(), losses.numpy()
    weights, initial, first, second, steps = (tensor.numpy() for tensor in state)
    options = alpha, learning_rate
    return functools.partial(_learn, *given, weights, initial, first, second, steps, *options)


@_kernel
def _learn(
    gramian: NDArray[Any],
    of_tasks: NDArray[Any],
    weights: NDArray[np.float32],
    initial_losses: NDArray[np.float32],
    first_moment: NDArray[np.float32],
    second_moment: NDArray[np.float32],
    steps: NDArray[np.float32],
    alpha: float,
    learning_rate: float,
) -> None:
    K = len(weights)
    losses = of_tasks.astype(np.float64)
    norms, ratios, gradient = np.empty(K), np.empty(K), np.empty(K)
    for k in range(K):
        squared = np.float64(gramian[k, k])
        norms[k] = np.sqrt(0.0 if squared < 0 else squared)  # NaN stays
        if not (np.isfinite(norms[k]) and np.isfinite(losses[k])):
            return
    if steps[()] == 0:
        initial_losses[:] = losses
    initial = initial_losses.astype(np.float64)
    floor = max(LOSS_FLOOR * initial.mean(), 1e-8)
    for k in range(K):
        ratios[k] = max(losses[k], 0.0) / max(initial[k], floor)
    mean_ratio, mean_norm = ratios.mean(), (weights * norms).mean()
    for k in range(K):
        rate = ratios[k] / mean_ratio if mean_ratio > 0 else 1.0
        surplus = weights[k] * norms[k] - mean_norm * rate**alpha
        gradient[k] = norms[k] * np.sign(surplus)
        if not np.isfinite(np.float32(gradient[k] * gradient[k])):
            return  # Adam's moments would never recover
    steps[()] += 1
    moved = np.empty(K)
    for k in range(K):
        first = gradient[k] + FIRST_DECAY * (first_moment[k] - gradient[k])
        squared = gradient[k] * gradient[k]
        second = squared + SECOND_DECAY * (second_moment[k] - squared)
        first_moment[k], second_moment[k] = first, second
        scale = np.sqrt(second / (1 - SECOND_DECAY ** steps[()])) + EPSILON
        step = learning_rate * first / (1 - FIRST_DECAY ** steps[()]) / scale
        moved[k] = max(weights[k] - step, MINIMUM_WEIGHT)
    weights[:] = moved * (K / moved.sum())
