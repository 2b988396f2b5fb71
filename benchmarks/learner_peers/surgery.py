"""PCGrad for `EagerSAC` by the ways that are open to users today."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torchjd.aggregation import PCGrad as JDPCGrad
from torchjd.aggregation import PCGradWeighting
from torchjd.autogram import Engine
from torchjd.autojac import backward as jac_backward
from torchjd.autojac import jac_to_grad

from mtrl.types import Batch

from .eager import EagerSAC


def k_backward_passes(losses: Tensor, parameters: list[nn.Parameter]) -> None:
    """Run one backward pass per task, then the paper's loop on the gradient vectors."""
    rows = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    projected = []
    for i, row in enumerate(rows):
        row = row.clone()
        for j in torch.randperm(len(rows)).tolist():
            if j != i:
                inner = row @ rows[j]
                if inner < 0:
                    row -= inner / rows[j].dot(rows[j]) * rows[j]
        projected.append(row)
    _write(torch.stack(projected).sum(dim=0), parameters)


def autojac(losses: Tensor, parameters: list[nn.Parameter]) -> None:
    """Use torchjd's Jacobian by batched backward passes."""
    jac_backward(losses, inputs=parameters)
    jac_to_grad(parameters, JDPCGrad())


class AutogramSAC(EagerSAC):
    """torchjd's Gramian by hooks, then one backward pass with its weights."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.backward = self._backward
        self._weighting = PCGradWeighting()
        # The engine's hooks want a backward pass for each call of a module they watch, and the
        # actor's step needs none for the critics': it calls twins that share their parameters.
        self._twins = copy.deepcopy(self.critics)
        for twin, critic in zip(self._twins.modules(), self.critics.modules(), strict=True):
            twin._parameters = critic._parameters
        self._engines = {
            len(list(self.critics.parameters())): Engine(*self.critics, batch_dim=0),
            len(list(self.actor.parameters())): Engine(self.actor, batch_dim=0),
        }

    def judges(self) -> nn.ModuleList:
        """Return critics that are not watched."""
        return self._twins

    def _backward(self, losses: Tensor, parameters: list[nn.Parameter]) -> None:
        weights = self._weighting(self._engines[len(parameters)].compute_gramian(losses))
        losses.backward(weights, inputs=parameters)


class VmapSAC(EagerSAC):
    """Per-task gradients by `torch.func.vmap` of `grad`, torchjd's PCGrad on their Gramian."""

    def critic_step(self, batch: Batch, target: Tensor) -> None:
        """Move the critics."""

        def loss(parameters: dict[str, Tensor], inputs: Tensor, target: Tensor) -> Tensor:
            total = inputs.new_zeros(())
            for e, critic in enumerate(self.critics):
                value = functional_call(critic, _of(parameters, f"{e}."), inputs).squeeze(-1)
                total = total + (value - target).square().mean()
            return total

        inputs = torch.cat([batch.observations, batch.actions, self.tasks], dim=-1)
        parameters: dict[str, Tensor] = dict(self.critics.named_parameters())
        J = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs, target)
        self._project(J, parameters)
        self.apply(self.critic_adam, self.critics)

    def actor_step(self, batch: Batch) -> Tensor:
        """Move the actor; return the log-densities of its actions."""

        def loss(
            parameters: dict[str, Tensor], observations: Tensor, task: Tensor, temperature: Tensor
        ) -> tuple[Tensor, Tensor]:
            def actor(inputs: Tensor) -> Tensor:
                output: Tensor = functional_call(self.actor, parameters, inputs)
                return output

            actions, log_densities = self.policy(actor, observations, task)
            inputs = torch.cat([observations, actions, task], dim=-1)
            value = torch.min(*(critic(inputs).squeeze(-1) for critic in self.critics))
            return (temperature * log_densities - value).mean(), log_densities

        parameters: dict[str, Tensor] = dict(self.actor.named_parameters())
        differentiate = vmap(
            grad(loss, has_aux=True), in_dims=(None, 0, 0, 0), randomness="different"
        )
        temperatures = self.log_temperatures.exp().detach()
        J, log_densities = differentiate(parameters, batch.observations, self.tasks, temperatures)
        self._project(J, parameters)
        self.apply(self.actor_adam, self.actor)
        detached: Tensor = log_densities.detach()
        return detached

    @staticmethod
    def _project(J: dict[str, Tensor], parameters: dict[str, Tensor]) -> None:
        rows = torch.cat([gradient.flatten(1) for gradient in J.values()], dim=1)
        weights = PCGradWeighting()(rows @ rows.T)
        _write(weights @ rows, list(parameters.values()))


def _of(parameters: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in parameters.items() if k.startswith(prefix)}


def _write(gradient: Tensor, parameters: list[nn.Parameter] | list[Tensor]) -> None:
    parts = gradient.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
