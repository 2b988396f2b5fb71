"""From K losses to one step of Adam, for one set of shared parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from . import dispatch
from .compiler import Compiler, use_widest_vectors
from .gradients import Tape, combine, gramian, jacobian
from .metrics import conflict_metrics, is_finite
from .state_tree import require_form
from .types import State, Weighting

AT_ONCE = 4096
"""Squares that are added up before their sum goes on in float64."""

_kernel = Compiler("optimizer", Path(__file__)).vectorised_kernel


class MultiTaskOptimizer:
    """Per-task gradients, weighting, clipping and Adam for the parameters of one module.

    Clipping happens inside Adam's kernel, which divides by a scale while it reads the gradient.
    Where a gradient is not finite the step is left out and counted; parameters and moments keep
    their bits.

    Args:
        module: Holds the parameters, all shared by all tasks.
        weighting: How the tasks' gradients are combined.
        learning_rate: Adam's.
        max_norm: Longest gradient that reaches Adam; infinite for no limit.
        half_life: Steps, counted as in `steps`, in which the learning rate halves, little by
            little; infinite for one that stays.
        epsilon: Adam's.
        watch_conflicts: Find the Gramian, and report on it, even if the weighting does not need it.
    """

    def __init__(
        self,
        module: nn.Module,
        weighting: Weighting,
        *,
        learning_rate: float,
        max_norm: float = math.inf,
        half_life: float = math.inf,
        epsilon: float = 1e-5,
        watch_conflicts: bool = True,
    ) -> None:
        self.module = module
        self.weighting = weighting
        self._max_norm = max_norm
        self._learning_rate, self._half_life = learning_rate, half_life
        self._finds_gramian = watch_conflicts or weighting.needs_gramian
        self._parameters = dict(module.named_parameters())
        device = next(module.parameters()).device
        self._skipped = torch.zeros((), device=device)
        self._adam = torch.optim.Adam(
            self._parameters.values(),
            lr=learning_rate,
            eps=epsilon,
            fused=True,
            capturable=device.type == "cuda",
        )

    def step(
        self,
        losses: Float[Tensor, " K"],
        tape: Tape,
        *,
        rates: Float[Tensor, " K"] | None = None,
    ) -> dict[str, Tensor]:
        """Move the module's parameters.

        Args:
            losses: One per task.
            tape: Of the forward pass of the module that led to them.
            rates: Non-negative losses that tell how far each task has come; `losses` if left out.

        Returns:
            ``weights (K,)``, ``skipped ()``, the number of steps left out so far, ``total_norm ()``
            of the combined gradient before clipping and, if the Gramian was found, ``norm (K,)``,
            ``conflict_rate ()`` and ``cosine_min ()``.
        """
        # A loss that overflowed, as a zero, has no gradient where its own derivative is finite: the
        # other tasks go on learning.
        J = jacobian(torch.where(is_finite(losses), losses, 0.0), tape)
        G = gramian(J) if self._finds_gramian else None
        weights = self.weighting(G, (losses if rates is None else rates).detach())
        gradient = combine(weights, J)
        norm = total_norm(list(gradient.values()))
        finite = is_finite(norm) if G is None else is_finite(norm) & is_finite(G).all()
        for parameter in self._parameters.values():
            parameter.grad = gradient[parameter]
        self._adam_step(scale=(norm / self._max_norm).clamp_min(1.0), broken=~finite)
        self._skipped += ~finite
        conflicts = {} if G is None else conflict_metrics(G)
        # The total comes last: where something is not finite, what tells the task is named first.
        return {
            "weights": weights,
            "skipped": self._skipped.clone(),
            **conflicts,
            "total_norm": norm,
        }

    def _adam_step(self, scale: Tensor, broken: Tensor) -> None:
        # The fused kernel divides gradients by `grad_scale`, and leaves everything as it is where
        # `found_inf` is 1. Both serve gradient scalers; here they clip, and skip a step without
        # asking the device whether to.
        self._adam.grad_scale = scale.float()  # type: ignore[attr-defined]
        self._adam.found_inf = broken.float()  # type: ignore[attr-defined]
        if math.isfinite(self._half_life):
            # On the device, as Adam's own count is, so that recorded updates see it fall.
            rate = self._learning_rate * torch.exp2(-self.steps / self._half_life)
            for group in self._adam.param_groups:
                group["lr"] = rate
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    @property
    def steps(self) -> Float[Tensor, ""]:
        """How many steps Adam has taken since the last reset, without those that were left out."""
        steps: Tensor = adam_state(self._adam, next(iter(self._parameters.values())))["step"]
        return steps

    @torch.no_grad()
    def reset(self, initial: Mapping[str, Tensor], due: Bool[Tensor, ""]) -> None:
        """Where `due`, set the parameters and put Adam back to before its first step.

        Args:
            initial: What the parameters become, by name.
            due: Whether to; on the parameters' device, which alone needs to know.
        """
        for name, parameter in self._parameters.items():
            parameter.copy_(torch.where(due, initial[name], parameter))
            for kept in self._adam.state[parameter].values():
                kept.masked_fill_(due, 0)

    def state_dict(self) -> State:
        """Return Adam's moments and the weighting's state; parameters belong to the module."""
        return {
            "adam": {name: adam_state(self._adam, p) for name, p in self._parameters.items()},
            "skipped": self._skipped.clone(),
            "weighting": self.weighting.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: An entry does not fit the module or weighting; nothing has changed.
        """
        require_form(state, self.state_dict())
        self.weighting.load_state_dict(state["weighting"])
        for name, parameter in self._parameters.items():
            restore_adam(self._adam, parameter, state["adam"][name])
        self._skipped.copy_(state["skipped"])


def total_norm(gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Return the Euclidean norm of all numbers in these."""
    has_kernel = gradients and gradients[0].dtype in (torch.float32, torch.float64)
    if has_kernel and dispatch.has_operators(gradients[0]):
        return _total_norm(gradients)
    return torch.nn.utils.get_total_norm(gradients)


def _room_for_norm(gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    return gradients[0].new_empty(())


@dispatch.operator("(Tensor[] gradients) -> Tensor", _room_for_norm)
def _total_norm(gradients: Sequence[Tensor], norm: Float[Tensor, ""]) -> Callable[[], object]:
    total = np.empty(1)
    calls = dispatch.InTurn([functools.partial(total.fill, 0)])
    for gradient in gradients:
        array = calls.contiguous(gradient).flatten().numpy()
        calls.append(functools.partial(_add_squares, array, total))
    calls.append(functools.partial(_take_root, total, norm.numpy()))
    return calls


@_kernel
def _add_squares(numbers: NDArray[Any], total: NDArray[np.float64]) -> None:
    """Add the squares of numbers, some of which at a time are added up in their own type."""
    use_widest_vectors()
    for first in range(0, len(numbers), AT_ONCE):
        some = numbers[first : first + AT_ONCE]
        squares = some[0] * some[0]
        for n in range(1, len(some)):
            squares += some[n] * some[n]
        total[0] += squares


@_kernel
def _take_root(total: NDArray[np.float64], norm: NDArray[Any]) -> None:
    norm[()] = np.sqrt(total[0])


def adam_state(adam: torch.optim.Adam, parameter: Tensor) -> State:
    """Return what a fused Adam keeps of a parameter; before its first step, what it begins with."""
    return dict(adam.state[parameter]) or {
        "step": torch.zeros((), device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def restore_adam(adam: torch.optim.Adam, parameter: Tensor, state: State) -> None:
    """Go on from what `adam_state` returned, which must be known to fit the parameter."""
    own = adam_state(adam, parameter)
    adam.state[parameter] = {key: torch.empty_like(own[key]).copy_(state[key]) for key in own}
