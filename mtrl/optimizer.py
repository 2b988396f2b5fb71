"""From K losses to one step of Adam, for one set of shared parameters."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .gradients import combine, expand_parameters, gramian, jacobian
from .metrics import conflict_metrics
from .types import State, Weighting


class MultiTaskOptimizer:
    """Per-task gradients, weighting, clipping and Adam for the parameters of one module.

    Clipping needs no pass over the parameters: the norm of ``w @ J`` is ``sqrt(w @ G @ w)``, so the
    weights are scaled instead of the gradient. Where a gradient is not finite the step is left out
    and counted; parameters and moments keep their bits.

    Args:
        module: Holds the parameters, all shared by all tasks.
        weighting: How the tasks' gradients are combined.
        num_tasks: K.
        learning_rate: Adam's.
        max_norm: Longest gradient that reaches Adam; infinite for no limit.
        epsilon: Adam's.
    """

    def __init__(
        self,
        module: nn.Module,
        weighting: Weighting,
        *,
        num_tasks: int,
        learning_rate: float,
        max_norm: float = float("inf"),
        epsilon: float = 1e-5,
    ) -> None:
        self.module = module
        self.weighting = weighting
        self._num_tasks = num_tasks
        self._max_norm = max_norm
        self._parameters = dict(module.named_parameters())
        self._skipped = torch.zeros((), device=next(module.parameters()).device)
        self._adam = torch.optim.Adam(
            self._parameters.values(), lr=learning_rate, eps=epsilon, fused=True
        )

    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters with a task axis, to compute losses with."""
        return expand_parameters(self.module, self._num_tasks)

    def step(
        self,
        losses: Float[Tensor, " K"],
        parameters: dict[str, Tensor],
        *,
        rates: Float[Tensor, " K"] | None = None,
    ) -> dict[str, Tensor]:
        """Move the module's parameters.

        Args:
            losses: One per task, computed with `parameters`.
            parameters: What `parameters()` returned.
            rates: Non-negative losses that tell how far each task has come; `losses` if left out.

        Returns:
            ``weights (K,)``, ``norm (K,)``, ``conflict_rate ()``, ``cosine_min ()`` and
            ``skipped ()``, the number of steps left out so far.
        """
        # A loss that overflowed, as a zero, has no gradient where its own derivative is finite: the
        # other tasks go on learning.
        J = jacobian(torch.where(losses.isfinite(), losses, 0.0), parameters)
        G = gramian(J)
        weights = self.weighting(G, (losses if rates is None else rates).detach())
        clipped = weights * self._clip_factor(weights, G)
        broken = ~(G.isfinite().all() & clipped.isfinite().all())
        gradient = combine(clipped, J)
        for name, parameter in self._parameters.items():
            parameter.grad = gradient[name]
        self._adam_step(broken)
        self._skipped += broken
        return {"weights": weights, "skipped": self._skipped.clone(), **conflict_metrics(G)}

    def _clip_factor(self, weights: Tensor, G: Tensor) -> Tensor:
        norm = (weights @ G @ weights).clamp_min(0).sqrt()
        return (self._max_norm / norm.clamp_min(1e-30)).clamp_max(1.0)

    def _adam_step(self, broken: Tensor) -> None:
        # The fused kernel leaves everything as it is where `found_inf` is 1 (it serves gradient
        # scalers), which skips a step without asking the device whether to.
        self._adam.found_inf = broken.float()  # type: ignore[attr-defined]
        self._adam.grad_scale = None  # type: ignore[attr-defined]
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def state_dict(self) -> State:
        """Return Adam's moments and the weighting's state; parameters belong to the module."""
        moments = {
            name: dict(self._adam.state[parameter]) for name, parameter in self._parameters.items()
        }
        return {
            "adam": moments,
            "skipped": self._skipped.clone(),
            "weighting": self.weighting.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on from a saved state."""
        for name, parameter in self._parameters.items():
            moments = state["adam"][name]
            self._adam.state[parameter] = {
                key: value.to(parameter.device, copy=True) for key, value in moments.items()
            }
        self._skipped.copy_(state["skipped"])
        self.weighting.load_state_dict(state["weighting"])
