"""Numbers that are not finite: kept out of the replay, named, and too many are the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import RunError
from .types import State

MAX_IN_A_ROW = 100
"""So many steps of one environment, or updates, in a row that are not finite end a training."""

_LARGEST = np.finfo(np.float32).max

_messages = logging.getLogger("mtrl")


class NonFiniteError(RunError):
    """What should be finite has not been for so long that training makes no sense any more."""


class Guard:
    """Watches what passes between environments, agent and replay.

    What crosses the host anyway is looked at there, before it is stored. What an update computes
    stays on its device: faults are counted there, and the counts are read where metrics are.

    Args:
        task_names: K names.
        envs_per_task: N.
        max_in_a_row: How many faults in a row are too many.
    """

    def __init__(
        self, task_names: Sequence[str], envs_per_task: int, *, max_in_a_row: int = MAX_IN_A_ROW
    ) -> None:
        self._task_names = tuple(task_names)
        self._tasks = np.repeat(np.arange(len(self._task_names)), envs_per_task)
        self._max_in_a_row = max_in_a_row
        self._in_a_row = np.zeros(len(self._tasks), np.int64)
        self._blind = np.zeros(len(self._tasks), np.bool_)  # who sees what is not finite
        self._lost = np.zeros(len(self._tasks), np.bool_)  # whose action was not finite
        self._diverged = np.zeros(len(self._tasks), np.bool_)  # in the last step
        self._named: set[tuple[str, int]] = set()
        self._counts: Tensor | None = None  # (3, M) faults in a row, most in a row, in all
        self._labels: list[tuple[str, int | None]] = []

    def actions(self, actions: NDArray[np.float32], env_steps: int) -> NDArray[np.float32]:
        """Replace actions ``(K * N, A)`` that are not finite by zeros; their step is left out."""
        self._lost = self._not_finite("action", actions, env_steps)
        return (
            np.where(self._lost[:, None], np.float32(0), actions) if self._lost.any() else actions
        )

    def step(
        self,
        observations: NDArray[np.float64],
        rewards: NDArray[np.float64],
        final_observations: NDArray[np.float64],
        diverged: NDArray[np.bool_],
        env_steps: int,
    ) -> NDArray[np.bool_]:
        """Find the transitions that must not be stored, and replace what is broken by zeros.

        Args:
            observations: What the agent sees next ``(K * N, O)``, cleaned in place.
            rewards: ``(K * N,)``, cleaned in place.
            final_observations: Where the step led ``(K * N, O)``, cleaned in place.
            diverged: Whose simulation gave up on the step ``(K * N,)``.
            env_steps: How many there were before this step.

        Returns:
            Whose transition is to be left out ``(K * N,)``.
        """
        left_out = self._lost | self._blind
        left_out |= self._not_finite("reward", rewards[:, None], env_steps)
        left_out |= self._not_finite("observation", final_observations, env_steps)
        self._blind = self._not_finite("observation", observations, env_steps)
        rewards[left_out] = 0.0
        final_observations[left_out] = 0.0
        observations[self._blind] = 0.0
        self._diverged = diverged.copy()
        left_out |= diverged
        self._in_a_row = (self._in_a_row + 1) * left_out
        return left_out

    def check_steps(self, env_steps: int) -> None:
        """Look at the steps so far; to be called where a state may be saved.

        Raises:
            NonFiniteError: An environment had nothing that is finite for too long.
        """
        if self._in_a_row.max(initial=0) >= self._max_in_a_row:
            row = self._in_a_row.argmax()
            why = (
                "were lost as its simulation diverged" if self._diverged[row] else "were not finite"
            )
            raise NonFiniteError(
                f"an environment of {self._task_names[self._tasks[row]]} had {self._max_in_a_row} "
                f"steps in a row that {why}, up to step {env_steps}"
            )

    def update(self, metrics: Mapping[str, Tensor]) -> None:
        """Count what is not finite in the metrics of an update, without asking the device."""
        values = torch.cat([value.reshape(-1) for value in metrics.values()])
        if len(self._labels) != len(values):
            self._labels = [
                (name, None if value.ndim == 0 else k)
                for name, value in metrics.items()
                for k in range(value.numel())
            ]
        if self._counts is None or self._counts.shape[1] != len(values):
            self._counts = torch.zeros(3, len(values))
        self._counts = self._counts.to(values.device)  # a saved one comes on the CPU
        broken = values - values != 0  # an infinity less itself is NaN, which equals nothing
        in_a_row, most, total = self._counts
        in_a_row.add_(1).mul_(broken)
        torch.maximum(most, in_a_row, out=most)
        total.add_(broken)

    def check_updates(self, env_steps: int) -> None:
        """Name what was not finite in the updates since the last call; waits for the device.

        Raises:
            NonFiniteError: Too many updates in a row were not.
        """
        if self._counts is None or not self._labels:  # none, or none since they were loaded
            return
        _, most, total = self._counts.to("cpu", copy=True).numpy()
        self._counts[1:] = 0
        if not total.any():
            return
        # The losses come first, and what follows from them is no news.
        name = self._labels[int(np.flatnonzero(total)[0])][0]
        mine = [index for index, label in enumerate(self._labels) if label[0] == name]
        broken = [index for index in mine if total[index]]
        tasks = [self._task_names[k] for k in (self._labels[i][1] for i in broken) if k is not None]
        whose = f" of {', '.join(tasks)}" if tasks else ""
        fault = f"{name}{whose} was not finite in {int(total[broken].max())} updates"
        if most.max() >= self._max_in_a_row:
            raise NonFiniteError(f"{fault} up to step {env_steps}, {int(most.max())} in a row")
        _messages.warning("%s up to step %d: left out where it was", fault, env_steps)

    def state_dict(self) -> State:
        """Return what decides about the steps to come."""
        return {
            "blind": self._blind.copy(),
            "in_a_row": self._in_a_row.copy(),
            "updates": None if self._counts is None else self._counts.clone(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: It is one of another number of environments, or no guard's.
        """
        for name in ("blind", "in_a_row"):
            if state[name].shape != self._tasks.shape:
                raise ValueError(f"`{name}` has shape {state[name].shape}")
        counts = state["updates"]
        if counts is not None and (counts.dtype != torch.float32 or counts.shape[:-1] != (3,)):
            raise ValueError(f"`updates` is {counts.dtype} of shape {tuple(counts.shape)}")
        self._counts = None if counts is None else counts.clone()
        self._blind = state["blind"].astype(np.bool_)
        self._in_a_row = state["in_a_row"].astype(np.int64)

    def _not_finite(
        self, quantity: str, values: NDArray[np.floating], env_steps: int
    ) -> NDArray[np.bool_]:
        """Find the rows that are not finite in the precision they are stored with."""
        if np.abs(values).max(initial=0.0) <= _LARGEST:  # which NaN is not, either
            return np.zeros(len(values), np.bool_)
        broken = np.asarray(~(np.abs(values) <= _LARGEST).all(axis=1), np.bool_)
        for row in np.flatnonzero(broken):
            key = quantity, int(self._tasks[row])
            if key not in self._named:
                self._named.add(key)
                _messages.warning(
                    "%s of %s is not finite at step %d: such steps are left out, their episodes "
                    "dropped and counted in train/dropped_episodes",
                    quantity,
                    self._task_names[key[1]],
                    env_steps,
                )
        return broken


def first_not_finite(state: State, prefix: str = "") -> str | None:
    """Name the first array of a state that holds NaN or an infinity; None if there is none."""
    for name, value in state.items():
        if isinstance(value, dict):
            if found := first_not_finite(value, f"{prefix}{name}/"):
                return found
        elif isinstance(value, Tensor) and not value.isfinite().all():
            return f"{prefix}{name}"
    return None
