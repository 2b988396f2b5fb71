"""Multi-task SAC in plain PyTorch, as it is usually written.

One `nn.Sequential` per network, the task one-hot concatenated to the inputs, one mean loss,
`torch.optim.Adam` with its defaults. Its gradients come from a hook, `surgery.py` has others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from agents.config import SACConfig
from mtrl.types import Batch

Backward = Callable[[Tensor, list[nn.Parameter]], None]
"""Writes `.grad` of the parameters, given the tasks' losses ``(K,)``."""


def backward_of_mean(losses: Tensor, parameters: list[nn.Parameter]) -> None:
    """Differentiate the mean loss: what an update without balancing does."""
    del parameters
    losses.mean().backward()


class EagerSAC:
    """One update of SAC; the same algorithm as `agents.SAC` with `uniform`."""

    backward: Backward = staticmethod(backward_of_mean)

    def __init__(
        self,
        config: SACConfig,
        num_tasks: int,
        observation_size: int,
        action_size: int,
        device: str = "cpu",
    ) -> None:
        self.config = config
        hidden = (config.actor_width, config.actor_depth, config.layer_norm)
        self.actor = _mlp(observation_size + num_tasks, *hidden, 2 * action_size).to(device)
        hidden = (config.critic_width, config.critic_depth, config.layer_norm)
        inputs = observation_size + action_size + num_tasks
        self.edges = torch.linspace(
            config.value_low, config.value_high, config.value_bins + 1, device=device
        )
        outputs = 1 if config.critic_values == "scalar" else config.value_bins
        self.critics = nn.ModuleList(_mlp(inputs, *hidden, outputs) for _ in range(2))
        self.targets = nn.ModuleList(_mlp(inputs, *hidden, outputs) for _ in range(2))
        self.critics.to(device)
        self.targets.to(device)
        self.targets.load_state_dict(self.critics.state_dict())
        self.log_temperatures = nn.Parameter(torch.zeros(num_tasks, device=device))
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=3e-4)
        self.critic_adam = torch.optim.Adam(self.critics.parameters(), lr=1e-3)
        self.temperature_adam = torch.optim.Adam([self.log_temperatures], lr=3e-4)
        self.one_hot = torch.eye(num_tasks, device=device)

    def update(self, batch: Batch) -> None:
        """Take one step with everything."""
        B = batch.rewards.shape[1]
        self.tasks = self.one_hot[:, None].expand(-1, B, -1)
        self.critic_step(batch, self.target(batch))
        log_densities = self.actor_step(batch)

        entropies = -log_densities.mean(dim=1)
        loss = (self.log_temperatures.exp() * (entropies - self.config.target_entropy)).sum()
        self.temperature_adam.zero_grad()
        loss.backward()
        self.temperature_adam.step()
        with torch.no_grad():
            rate = self.config.target_rate
            for slow, fast in zip(
                self.targets.parameters(), self.critics.parameters(), strict=True
            ):
                slow.copy_(rate * fast + (1 - rate) * slow)

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """Return what the critics should predict."""
        actions, log_densities = self.policy(self.actor, batch.next_observations, self.tasks)
        inputs = torch.cat([batch.next_observations, actions, self.tasks], dim=-1)
        value = torch.min(*(self.decode(critic(inputs)) for critic in self.targets))
        soft_value = value - self.log_temperatures.exp()[:, None] * log_densities
        future = self.config.discount * (1 - batch.terminated) * soft_value
        target: Tensor = self.config.reward_scale * batch.rewards + future
        return target

    def critic_step(self, batch: Batch, target: Tensor) -> None:
        """Move the critics."""
        inputs = torch.cat([batch.observations, batch.actions, self.tasks], dim=-1)
        first, second = (self.critic_loss(critic(inputs), target) for critic in self.critics)
        losses = first + second
        self.critic_adam.zero_grad()
        self.backward(losses, list(self.critics.parameters()))
        self.apply(self.critic_adam, self.critics)

    def actor_step(self, batch: Batch) -> Tensor:
        """Move the actor; return the log-densities of its actions."""
        actions, log_densities = self.policy(self.actor, batch.observations, self.tasks)
        inputs = torch.cat([batch.observations, actions, self.tasks], dim=-1)
        value = torch.min(*(self.decode(critic(inputs)) for critic in self.judges()))
        temperatures = self.log_temperatures.exp().detach()[:, None]
        losses = (temperatures * log_densities - value).mean(dim=1)
        self.actor_adam.zero_grad()
        self.backward(losses, list(self.actor.parameters()))
        self.apply(self.actor_adam, self.actor)
        return log_densities.detach()

    def decode(self, outputs: Tensor) -> Tensor:
        """Return the values that a critic's outputs stand for."""
        if self.config.critic_values == "scalar":
            return outputs.squeeze(-1)
        centers = (self.edges[:-1] + self.edges[1:]) / 2
        return (torch.softmax(outputs, dim=-1) * centers).sum(dim=-1)

    def critic_loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return one critic's losses (K,): squared errors, or cross-entropies with HL-Gauss."""
        if self.config.critic_values == "scalar":
            return ((outputs.squeeze(-1) - target) ** 2).mean(dim=1)
        sigma = 0.75 * (self.edges[1] - self.edges[0])
        target = target.clamp(self.config.value_low, self.config.value_high)
        normal = torch.distributions.Normal(target[..., None], sigma, validate_args=False)
        below = normal.cdf(self.edges)
        mass = (below[..., 1:] - below[..., :-1]) / (below[..., -1:] - below[..., :1])
        losses: Tensor = -(mass * torch.log_softmax(outputs, dim=-1)).sum(dim=-1).mean(dim=1)
        return losses

    def judges(self) -> nn.ModuleList:
        """Return the critics as the actor's step sees them."""
        return self.critics

    @staticmethod
    def policy(
        actor: Callable[[Tensor], Tensor], observations: Tensor, tasks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sample actions and their log-densities."""
        output = actor(torch.cat([observations, tasks], dim=-1))
        mean, log_std = output.chunk(2, dim=-1)
        std = log_std.clamp(-20, 2).exp()
        normal = torch.distributions.Normal(mean, std, validate_args=False)
        gaussian = mean + std * torch.randn_like(mean)  # as `rsample`, which `vmap` cannot batch
        actions = gaussian.tanh()
        log_slope = torch.log(1 - actions**2 + 1e-6)
        return actions, (normal.log_prob(gaussian) - log_slope).sum(dim=-1)

    def apply(self, adam: torch.optim.Adam, module: nn.Module) -> None:
        """Clip, and let Adam step."""
        nn.utils.clip_grad_norm_(module.parameters(), self.config.max_gradient_norm)
        adam.step()


def _mlp(inputs: int, width: int, depth: int, layer_norm: bool, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers.append(nn.Linear(inputs, width))
        if layer_norm:
            layers.append(nn.LayerNorm(width, elementwise_affine=False))
        layers.append(nn.ReLU())
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
