"""The same update in JAX, compiled as one function."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from agents.config import SACConfig
from mtrl.types import Batch


class JaxSAC:
    """One update of SAC under `jax.jit`, with donated state; `uniform` only."""

    def __init__(
        self, config: SACConfig, num_tasks: int, observation_size: int, action_size: int
    ) -> None:
        self.config, self.K, self.A = config, num_tasks, action_size
        keys = jax.random.split(jax.random.key(0), 4)
        inputs = observation_size + num_tasks
        self.state: dict[str, Any] = {"key": keys[0]}
        self.state["actor"] = _mlp(
            keys[1], [inputs, *[config.actor_width] * config.actor_depth, 2 * action_size]
        )
        sizes = [inputs + action_size, *[config.critic_width] * config.critic_depth, 1]
        members = [_mlp(key, sizes) for key in keys[2:]]
        self.state["critics"] = jax.tree.map(lambda *each: jnp.stack(each), *members)
        self.state["targets"] = jax.tree.map(jnp.copy, self.state["critics"])
        self.state["temperatures"] = jnp.zeros(num_tasks)
        clip = optax.clip_by_global_norm(config.max_gradient_norm)
        self.adams = {
            "actor": optax.chain(clip, optax.adam(3e-4)),
            "critics": optax.chain(clip, optax.adam(1e-3)),
            "temperatures": optax.adam(3e-4),
        }
        for name, adam in self.adams.items():
            self.state[f"{name}_adam"] = adam.init(self.state[name])
        self._update = jax.jit(self._pure_update, donate_argnums=0)

    def update(self, batch: Batch) -> None:
        """Take one step with everything and wait for it."""
        arrays = {name: np.asarray(value) for name, value in vars(batch).items()}
        self.state = self._update(self.state, arrays)
        jax.block_until_ready(self.state)

    def _pure_update(self, state: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        config = self.config
        state["key"], target_key, actor_key = jax.random.split(state["key"], 3)
        temperatures = jnp.exp(state["temperatures"])[:, None]
        next_actions, log_densities = self._policy(
            state["actor"], batch["next_observations"], target_key
        )
        values = self._values(state["targets"], batch["next_observations"], next_actions)
        soft_value = values.min(axis=0) - temperatures * log_densities
        future = config.discount * (1 - batch["terminated"]) * soft_value
        target = config.reward_scale * batch["rewards"] + future

        def critic_loss(critics: Any) -> Any:
            values = self._values(critics, batch["observations"], batch["actions"])
            return ((values - target) ** 2).mean(axis=-1).sum(axis=0).mean()

        self._step(state, "critics", jax.grad(critic_loss)(state["critics"]))

        def actor_loss(actor: Any) -> Any:
            actions, log_densities = self._policy(actor, batch["observations"], actor_key)
            values = self._values(state["critics"], batch["observations"], actions).min(axis=0)
            return (temperatures * log_densities - values).mean(), log_densities

        gradient, log_densities = jax.grad(actor_loss, has_aux=True)(state["actor"])
        self._step(state, "actor", gradient)
        surplus = -log_densities.mean(axis=1) - config.target_entropy
        self._step(state, "temperatures", temperatures[:, 0] * surplus)
        state["targets"] = optax.incremental_update(
            state["critics"], state["targets"], config.target_rate
        )
        return state

    def _step(self, state: dict[str, Any], name: str, gradient: Any) -> None:
        updates, state[f"{name}_adam"] = self.adams[name].update(gradient, state[f"{name}_adam"])
        state[name] = optax.apply_updates(state[name], updates)

    def _policy(self, actor: Any, observations: Any, key: Any) -> tuple[Any, Any]:
        output = self._forward(actor, self._with_tasks(observations))
        mean, log_std = jnp.split(output, 2, axis=-1)
        log_std = jnp.clip(log_std, -20, 2)
        noise = jax.random.normal(key, mean.shape)
        gaussian = mean + jnp.exp(log_std) * noise
        log_density = -0.5 * (noise**2 + jnp.log(2 * jnp.pi)) - log_std
        log_slope = 2 * (jnp.log(2.0) - gaussian - jax.nn.softplus(-2 * gaussian))
        return jnp.tanh(gaussian), (log_density - log_slope).sum(axis=-1)

    def _values(self, critics: Any, observations: Any, actions: Any) -> Any:
        inputs = self._with_tasks(jnp.concatenate([observations, actions], axis=-1))
        return jax.vmap(partial(self._forward, inputs=inputs))(critics)[..., 0]

    def _with_tasks(self, inputs: Any) -> Any:
        tasks = jnp.broadcast_to(jnp.eye(self.K)[:, None], (*inputs.shape[:2], self.K))
        return jnp.concatenate([inputs, tasks], axis=-1)

    def _forward(self, layers: Any, inputs: Any) -> Any:
        # One product for all tasks' rows: the compiler does not join the axes by itself.
        hidden = inputs.reshape(-1, inputs.shape[-1])
        for weight, bias in layers[:-1]:
            hidden = hidden @ weight + bias
            if self.config.layer_norm:
                mean, variance = hidden.mean(-1, keepdims=True), hidden.var(-1, keepdims=True)
                hidden = (hidden - mean) * jax.lax.rsqrt(variance + 1e-5)
            hidden = jax.nn.relu(hidden)
        weight, bias = layers[-1]
        return (hidden @ weight + bias).reshape(*inputs.shape[:2], -1)


def _mlp(key: Any, sizes: list[int]) -> list[tuple[Any, Any]]:
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        key, weights, biases = jax.random.split(key, 3)
        bound = fan_in**-0.5
        layers.append(
            (
                jax.random.uniform(weights, (fan_in, fan_out), minval=-bound, maxval=bound),
                jax.random.uniform(biases, (fan_out,), minval=-bound, maxval=bound),
            )
        )
    return layers
