"""Multi-task soft actor-critic, conditioned on a task one-hot."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.gradients import Tape
from mtrl.metrics import is_finite
from mtrl.optimizer import MultiTaskOptimizer, adam_state, restore_adam
from mtrl.seeding import make_generator, restore_generator
from mtrl.state_tree import require_form
from mtrl.types import Batch, State
from mtrl.weighting import make_weighting

from .config import SACConfig
from .distributions import SquashedGaussian
from .networks import Actor, Critics

_SMALLEST_REWARD = 1e-8
"""Of a task whose largest is less, rewards count as next to nothing."""


class SAC:
    """Soft actor-critic for K tasks with one actor, twin critics and a temperature per task.

    Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018
    (https://arxiv.org/abs/1812.05905). The critics' and the actor's per-task gradients are each
    combined by a weighting of their own; the temperatures share nothing and need none.

    The actor goes on changing between two evaluations, back and forth: of what it does well in one
    moment, some is lost in the next. Where actions are deterministic a running average of its
    parameters acts, which is steadier and better (Nikishin et al., "Improving Stability in Deep
    Reinforcement Learning with Weight Averaging", 2018). Learning does not see that average.

    While it explores, each environment's noise may follow from that of the step before (Korenkevych
    et al., "Autoregressive Policies for Continuous Control Deep Reinforcement Learning", 2019). In
    each step it is standard normal, as ever; over several it leads further than what is drawn
    afresh and cancels out.

    Rewards may differ a hundredfold between tasks, and between a task's first and last hour. They
    are kept as they came and divided where they are used, so that no transition goes stale when a
    larger reward comes (Nauman et al., "Bigger, Regularized, Categorical", 2025, divide by
    returns). The critics then have to follow: what they have learned is in the old unit.

    What networks learn first can keep them from learning what comes later. They may go back to
    where they began, with all that was experienced since to learn from (Nikishin et al., "The
    Primacy Bias in Deep Reinforcement Learning", 2022, who draw them anew).

    Args:
        config: See `SACConfig`.
        num_tasks: K.
        observation_size: O, without the one-hot: the agent appends that itself.
        action_size: A.
        seed: Of initial weights, action noise and visiting orders.
        device: Where everything lives.
        dtype: What matrix products are computed in; `torch.bfloat16` where the hardware has it.

    Attributes:
        generators: All that updates draw from.
        largest_rewards: The largest size of each task's rewards, ``(K,)``; of several steps', which
            are sampled as one sum, their mean. Ones if rewards are not divided by them.
    """

    def __init__(
        self,
        config: SACConfig,
        *,
        num_tasks: int,
        observation_size: int,
        action_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = config
        self._noise_generator = make_generator(seed, "action noise", device)
        self._exploration_noise = torch.zeros(num_tasks, 0, action_size, device=device)
        largest = torch.zeros if config.normalize_rewards else torch.ones
        self.largest_rewards = largest(num_tasks, device=device)
        networks = make_generator(seed, "networks", device)
        options: dict[str, Any] = {
            "num_tasks": num_tasks,
            "embedding_size": config.task_embedding,
            "generator": networks,
            "dtype": dtype,
        }
        self.actor = Actor(observation_size, action_size, config, **options)
        inputs = observation_size + action_size
        self.critics = Critics(inputs, config, **options)
        self.target_critics = Critics(inputs, config, **options)
        self.target_critics.load_state_dict(self.critics.state_dict())
        self.target_critics.requires_grad_(False)
        self.averaged_actor = Actor(observation_size, action_size, config, **options)
        self.averaged_actor.load_state_dict(self.actor.state_dict())
        self.averaged_actor.requires_grad_(False)
        # Where networks go back to; what follows them began as their copies.
        self._initial: dict[str, dict[str, Tensor]] = {
            name: {key: value.detach().clone() for key, value in module.named_parameters()}
            for name, module in (("critics", self.critics), ("actor", self.actor))
            if config.reset_every
        }
        self.log_temperatures = (
            torch.full((num_tasks,), config.initial_temperature, device=device)
            .log_()
            .requires_grad_()
        )
        # Listing a module's parameters takes longer than moving them a little.
        self._averages: list[tuple[list[Tensor], list[Tensor], float]] = [
            (list(average.parameters()), list(module.parameters()), rate)
            for average, module, rate in (
                (self.target_critics, self.critics, config.target_rate),
                (self.averaged_actor, self.actor, config.actor_average_rate),
            )
        ]
        self._temperature_adam = torch.optim.Adam(
            [self.log_temperatures],
            lr=config.temperature_learning_rate,
            fused=True,
            capturable=self.log_temperatures.is_cuda,
        )
        critic_orders = make_generator(seed, "critic weighting", device)
        actor_orders = make_generator(seed, "actor weighting", device)
        self.generators = (self._noise_generator, critic_orders, actor_orders)
        self.critic_optimizer = self._optimizer(
            self.critics,
            config.critic_weighting,
            generator=critic_orders,
            alpha=config.gradnorm_alpha,
            learning_rate=config.critic_learning_rate,
        )
        self.actor_optimizer = self._optimizer(
            self.actor,
            config.actor_weighting,
            generator=actor_orders,
            alpha=config.gradnorm_actor_alpha,
            learning_rate=config.actor_learning_rate,
        )

    def _optimizer(
        self,
        module: Actor | Critics,
        weighting: str,
        *,
        generator: torch.Generator,
        alpha: float,
        learning_rate: float,
    ) -> MultiTaskOptimizer:
        return MultiTaskOptimizer(
            module,
            make_weighting(
                weighting,
                len(self.log_temperatures),
                generator=generator,
                alpha=alpha,
                learning_rate=self.config.gradnorm_learning_rate,
            ),
            learning_rate=learning_rate,
            max_norm=self.config.max_gradient_norm,
            watch_conflicts=self.config.watch_conflicts,
            half_life=self.config.learning_rate_half_life or math.inf,
        )

    @torch.no_grad()
    def act(
        self, observations: Float[Tensor, "K N O"], *, deterministic: bool = False
    ) -> Float[Tensor, "K N A"]:
        """Choose actions for N environments of each task; see `mtrl.types.Agent`.

        Unless deterministic, the same N environments should be asked for in each call, as their
        noise follows that of the call before.
        """
        if deterministic:
            averaged: SquashedGaussian = self.averaged_actor(observations)
            return averaged.mode()
        policy: SquashedGaussian = self.actor(observations)
        return policy.actions(self._correlated_noise(policy.mean))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take one step with critics, actor and temperatures, and move the targets.

        Returns:
            Detached metrics by their logged name, ``(K,)`` per task or ``()``.
        """
        if self.config.reset_every:
            self._reset_if_due()
        if self.config.normalize_rewards:
            self._look_at_rewards(batch)
        targets = self.target_values(batch, self._noise(batch.actions))
        tape = Tape()
        critic_losses = self.critic_losses(batch, targets, tape)
        critic_metrics = self.critic_optimizer.step(critic_losses, tape)

        tape = Tape()
        actor_losses, log_densities = self.actor_losses(batch, self._noise(batch.actions), tape)
        actor_metrics = self.actor_optimizer.step(actor_losses, tape, rates=critic_losses)

        temperatures = self.log_temperatures.detach().exp()
        self._update_temperatures(log_densities)
        with torch.no_grad():
            for average, parameters, rate in self._averages:
                torch._foreach_lerp_(average, parameters, rate)
        return {
            "train/critic_loss": critic_losses.detach(),
            "train/actor_loss": actor_losses.detach(),
            "train/temperature": temperatures,
            "train/entropy": -log_densities.mean(dim=-1),
            **_name_gradient_metrics("critic", critic_metrics),
            **_name_gradient_metrics("actor", actor_metrics),
        }

    @torch.no_grad()
    def _reset_if_due(self) -> None:
        """After every so many updates, put networks and optimizers back to how they began.

        Before an update, not after one, so that what is evaluated or saved has learned. Whether it
        is time is left to the device, which can then repeat recorded updates.
        """
        due = self.critic_optimizer.steps >= self.config.reset_every
        for name, optimizer, average in (
            ("critics", self.critic_optimizer, self.target_critics),
            ("actor", self.actor_optimizer, self.averaged_actor),
        ):
            optimizer.reset(self._initial[name], due)
            for key, parameter in average.named_parameters():
                parameter.copy_(torch.where(due, self._initial[name][key], parameter))

    @torch.no_grad()
    def target_values(self, batch: Batch, noise: Float[Tensor, "K B A"]) -> Float[Tensor, "K B"]:
        """Return what the critics should predict, in scaled reward.

        The next action comes from the *next* observation, the entropy bonus from the task's own
        temperature. Only termination cuts the future off; a time limit does not.
        """
        actions, log_densities = self.actor(batch.next_observations).sample(noise)
        values = self._value(self.target_critics, batch.next_observations, actions)
        soft_values = values - self.log_temperatures.exp()[:, None] * log_densities
        future = self.config.discount**batch.steps * (1 - batch.terminated) * soft_values
        largest = self.largest_rewards.clamp_min(_SMALLEST_REWARD)[:, None]
        targets: Tensor = self.config.reward_scale * batch.rewards / largest + future
        return targets

    def _look_at_rewards(self, batch: Batch) -> None:
        """Remember the largest rewards; of several steps', their mean, as they add up."""
        sizes = (batch.rewards / batch.steps).abs()
        # What is not finite breaks this update; it is not to break all that follow.
        largest = torch.where(is_finite(sizes), sizes, 0.0).amax(dim=-1)
        torch.maximum(self.largest_rewards, largest, out=self.largest_rewards)

    def critic_losses(
        self, batch: Batch, targets: Float[Tensor, "K B"], tape: Tape | None = None
    ) -> Float[Tensor, " K"]:
        """Return each task's loss, summed over both critics and averaged over its batch.

        Args:
            batch: Whose observations and actions are judged.
            targets: What `target_values` returned.
            tape: Remembers the critics' layers.
        """
        outputs = self.critics(batch.observations, batch.actions, tape)
        return self.critics.values.losses(outputs, targets).mean(dim=-1).sum(dim=0)

    def actor_losses(
        self, batch: Batch, noise: Float[Tensor, "K B A"], tape: Tape | None = None
    ) -> tuple[Float[Tensor, " K"], Float[Tensor, "K B"]]:
        """Return each task's mean of ``temperature * log density - value``, and the log-densities.

        Args:
            batch: Whose observations are acted on.
            noise: Standard normal.
            tape: Remembers the actor's layers. The critics' are not: they are only looked at here,
                and cost no weight gradients.
        """
        policy: SquashedGaussian = self.actor(batch.observations, tape)
        actions, log_densities = policy.sample(noise)
        values = self._value(self.critics, batch.observations, actions)
        temperatures = self.log_temperatures.detach().exp()[:, None]
        losses: Tensor = (temperatures * log_densities - values).mean(dim=-1)
        return losses, log_densities.detach()

    def _value(self, critics: Critics, observations: Tensor, actions: Tensor) -> Tensor:
        both = critics.values.decode(critics(observations, actions))
        return both.amin(dim=0) if self.config.twins == "min" else both.mean(dim=0)

    def _update_temperatures(self, log_densities: Float[Tensor, "K B"]) -> None:
        """Raise the temperature of tasks whose entropy is below the target, lower the others'."""
        surplus = -log_densities.mean(dim=-1) - self.config.target_entropy
        gradient = self.log_temperatures.detach().exp() * surplus
        self.log_temperatures.grad = torch.where(is_finite(gradient), gradient, 0.0)
        self._temperature_adam.step()

    def _correlated_noise(self, like: Float[Tensor, "K N A"]) -> Float[Tensor, "K N A"]:
        """Return standard normal noise, correlated with that of the call before."""
        noise = self._noise(like)
        correlation = self.config.exploration_correlation
        if self._exploration_noise.shape == noise.shape:  # else there is none to follow
            noise *= math.sqrt(1 - correlation**2)
            noise += correlation * self._exploration_noise
        self._exploration_noise = noise
        return noise

    def _noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._noise_generator, device=like.device)

    def state_dict(self) -> State:
        """Return networks, optimizers, temperatures and the generator."""
        state: State = {
            "actor": self.actor.state_dict(),
            "averaged_actor": self.averaged_actor.state_dict(),
            "critics": self.critics.state_dict(),
            "target_critics": self.target_critics.state_dict(),
            "log_temperatures": self.log_temperatures.detach().clone(),
            "temperature_adam": adam_state(self._temperature_adam, self.log_temperatures),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "noise_generator": self._noise_generator.get_state(),
            "exploration_noise": self._exploration_noise,
        }
        if self.config.normalize_rewards:  # a run from before there was this option has none
            state["largest_rewards"] = self.largest_rewards.clone()
        if self.config.reset_every:
            state["initial"] = {
                name: {key: value.clone() for key, value in parameters.items()}
                for name, parameters in self._initial.items()
            }
        return state

    def load_state_dict(self, state: State) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: An entry does not fit this agent; nothing has changed.
        """
        form = self.state_dict()
        match state:
            case {"exploration_noise": Tensor(shape=(_, N, _))}:  # of any number of environments
                K, _, A = self._exploration_noise.shape
                form["exploration_noise"] = self._exploration_noise.new_empty(K, N, A)
        require_form(state, form)
        self.actor.load_state_dict(state["actor"])
        self.averaged_actor.load_state_dict(state["averaged_actor"])
        self.critics.load_state_dict(state["critics"])
        self.target_critics.load_state_dict(state["target_critics"])
        with torch.no_grad():
            self.log_temperatures.copy_(state["log_temperatures"])
        restore_adam(self._temperature_adam, self.log_temperatures, state["temperature_adam"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.actor_optimizer.load_state_dict(state["actor_optimizer"])
        restore_generator(self._noise_generator, state["noise_generator"])
        if self.config.normalize_rewards:
            self.largest_rewards.copy_(state["largest_rewards"])
        for name, parameters in self._initial.items():
            for key, value in parameters.items():
                value.copy_(state["initial"][name][key])
        noise = state["exploration_noise"]
        self._exploration_noise = noise.to(self._exploration_noise.device, copy=True)


def _name_gradient_metrics(network: str, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give an optimizer's metrics the names they are logged under."""
    weights = {f"weights/{network}": metrics["weights"]}
    others = {f"gradients/{network}/{k}": v for k, v in metrics.items() if k != "weights"}
    return weights | others
