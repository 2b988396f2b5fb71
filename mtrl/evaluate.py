"""The evaluation protocol: every goal of every task exactly once, deterministic actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from .types import Agent, Environments


@dataclass(frozen=True)
class Evaluation:
    """What came out of one episode per task and goal, G goals each.

    Attributes:
        task_names: K names.
        success: 1 where the episode reached success at any of its steps, else 0, ``(K, G)``.
        returns: Undiscounted returns in the environment's own units, ``(K, G)``.
    """

    task_names: Sequence[str]
    success: Float[np.ndarray, "K G"]
    returns: Float[np.ndarray, "K G"]

    @property
    def success_rate(self) -> float:
        """Mean success over goals and tasks."""
        return float(self.success.mean())

    def metrics(self) -> dict[str, float]:
        """Return the results under the names they are logged with."""
        rates = {
            f"eval/success_rate/{name}": float(rate)
            for name, rate in zip(self.task_names, self.success.mean(axis=1), strict=True)
        }
        returns = {
            f"eval/return/{name}": float(value)
            for name, value in zip(self.task_names, self.returns.mean(axis=1), strict=True)
        }
        return {"eval/success_rate": self.success_rate, **rates, **returns}


def evaluate(
    agent: Agent,
    envs: Environments,
    *,
    device: torch.device | str = "cpu",
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Play each goal of each task once.

    Args:
        agent: Acts deterministically; nothing of it changes.
        envs: Environments used for nothing else, made to play their goals in turn.
        device: The agent's.
        stop: Asked after each step whether to give up.

    Returns:
        Success and return of every episode; None if `stop` said so before they were all played.
    """
    K, N, G = envs.num_tasks, envs.envs_per_task, envs.num_goals
    tasks = np.repeat(np.arange(K), N)
    success = np.full((K, G), np.nan)
    returns = np.full((K, G), np.nan)
    reached = np.zeros(K * N, dtype=bool)
    collected = np.zeros(K * N)
    observations, _ = envs.reset()
    while np.isnan(success).any():
        if stop():
            return None
        inputs = torch.as_tensor(observations, dtype=torch.float32, device=device)
        actions = agent.act(inputs.view(K, N, -1), deterministic=True)
        observations, rewards, terminated, truncated, infos = envs.step(
            actions.flatten(0, 1).cpu().numpy()
        )
        reached |= infos["success"].astype(bool)
        collected += rewards
        ended = terminated | truncated
        if ended.any():
            cells = tasks[ended], infos["goal_index"][ended]
            success[cells], returns[cells] = reached[ended], collected[ended]
            reached[ended], collected[ended] = False, 0.0
    return Evaluation(envs.task_names, success, returns)
