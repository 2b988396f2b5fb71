"""The evaluation protocol: every goal of every task exactly once, deterministic actions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from .types import Agent, Environments

_messages = logging.getLogger("mtrl")


@dataclass(frozen=True)
class Evaluation:
    """What came out of one episode per task and goal, G goals each.

    An episode whose simulation was lost, or gave what is not finite, counts as not played unless it
    had reached success before: it says nothing about the agent. It is NaN here and left out of
    every mean.

    Attributes:
        task_names: K names.
        success: 1 where the episode reached success at any of its steps, else 0, ``(K, G)``.
        returns: Undiscounted returns in the environment's own units, ``(K, G)``.
        whole_episodes: Whether episodes went on after success; if not, returns end with it too.
    """

    task_names: Sequence[str]
    success: Float[np.ndarray, "K G"]
    returns: Float[np.ndarray, "K G"]
    whole_episodes: bool = True

    @property
    def success_rate(self) -> float | None:
        """Mean success over goals and tasks; None if not one was played."""
        return mean_of_played(self.success)

    @property
    def num_played(self) -> int:
        """Episodes that count."""
        return int(np.isfinite(self.success).sum())

    def metrics(self) -> dict[str, float]:
        """Return the results under the names they are logged with, where there is any."""
        metrics = {"eval/success_rate": self.success_rate}
        name_of_return = "return" if self.whole_episodes else "return_until_success"
        for kind, values in (("success_rate", self.success), (name_of_return, self.returns)):
            for name, row in zip(self.task_names, values, strict=True):
                metrics[f"eval/{kind}/{name}"] = mean_of_played(row)
        return {name: value for name, value in metrics.items() if value is not None}


def mean_of_played(values: NDArray[np.floating]) -> float | None:
    """Return the mean of what is not NaN; None if there is nothing else."""
    played = values[~np.isnan(values)]
    return float(played.mean()) if played.size else None


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
        envs: Environments used for nothing else, made to play each of their goals once.
        device: The agent's.
        stop: Asked after each step whether to give up.

    Returns:
        Success and return of every episode; None if `stop` said so before they had all ended.
    """
    K, N, G = envs.num_tasks, envs.envs_per_task, envs.num_goals
    tasks = np.repeat(np.arange(K), N)
    success = np.full((K, G), np.nan)
    returns = np.full((K, G), np.nan)
    seen = np.zeros((K, G), dtype=bool)
    reached, broken = np.zeros((2, K * N), dtype=bool)
    collected = np.zeros(K * N)
    observations, _ = envs.reset()
    while not seen.all():
        if stop():
            return None
        inputs = torch.as_tensor(observations, dtype=torch.float32, device=device)
        actions = agent.act(inputs.view(K, N, -1), deterministic=True)
        # Not `step`, which may simulate in this thread: one that hangs would not be noticed.
        envs.send(actions.flatten(0, 1).cpu().numpy())
        observations, rewards, terminated, truncated, infos = envs.recv()
        collected += rewards
        broken |= infos["diverged"] | ~np.isfinite(infos["final_obs"]).all(axis=1)
        broken |= ~np.isfinite(collected)
        reached |= infos["success"].astype(bool) & ~broken
        ended = terminated | truncated
        if ended.any():
            seen[tasks[ended], infos["goal_index"][ended]] = True
            # Environments that play goals `sequential`ly may come round to one again.
            missing = np.isnan(success[tasks, infos["goal_index"]])
            played = ended & missing & (reached | ~broken)
            cells = tasks[played], infos["goal_index"][played]
            success[cells] = reached[played]
            returns[cells] = np.where(broken, np.nan, collected)[played]
            reached[ended], broken[ended], collected[ended] = False, False, 0.0
    whole = not envs.ends_with_success
    evaluation = Evaluation(envs.task_names, success, returns, whole_episodes=whole)
    if evaluation.num_played < K * G:
        _messages.warning(
            "%d of %d episodes of an evaluation broke off and are left out of its means: %s",
            K * G - evaluation.num_played,
            K * G,
            ", ".join(envs.task_names[k] for k in np.flatnonzero(np.isnan(success).any(axis=1))),
        )
    return evaluation
