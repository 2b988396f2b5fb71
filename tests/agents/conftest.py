"""Agents and batches that the agents' tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from agents import SAC, SACConfig
from mtrl.types import Batch

K, B, O, A = 3, 5, 4, 2  # noqa: E741


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Random transitions of three tasks, by seed, in float64 unless said otherwise."""

    def make(seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        return Batch(
            observations=normal(K, B, O),
            actions=normal(K, B, A).tanh(),
            rewards=10 * normal(K, B),
            next_observations=normal(K, B, O),
            terminated=(normal(K, B) > 0.5).to(dtype),
            steps=1 + torch.arange(K * B).view(K, B).to(dtype) % 3,
        )

    return make


@pytest.fixture
def make_agent() -> Callable[..., SAC]:
    """A small SAC for three tasks; options are those of `SACConfig`."""

    def make(seed: int = 0, *, double: bool = False, **options: object) -> SAC:
        options = {"critic_width": 12, "critic_depth": 2, "actor_width": 8} | options
        agent = SAC(
            SACConfig(**options),
            num_tasks=K,
            observation_size=O,
            action_size=A,
            seed=seed,
            dtype=torch.float64 if double else torch.float32,
        )
        if double:
            for module in (agent.actor, agent.averaged_actor, agent.critics, agent.target_critics):
                module.double()
            agent.log_temperatures.data = agent.log_temperatures.data.double()
        # Temperatures and targets of their own, so that no two can be mistaken for another.
        agent.log_temperatures.data += torch.tensor([-1.0, 0.0, 1.5])
        for parameter in agent.target_critics.parameters():
            parameter.data *= 1.1
        return agent

    return make
