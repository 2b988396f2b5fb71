"""Returns and successes of training episodes."""

from __future__ import annotations

import numpy as np

from .types import State


class EpisodeTracker:
    """Collects the returns and successes of training episodes as they end.

    Args:
        task_names: K names.
        envs_per_task: N.

    Attributes:
        dropped: Episodes of each task that were broken and count for nothing, ``(K,)``.
    """

    def __init__(self, task_names: tuple[str, ...], envs_per_task: int) -> None:
        self._task_names = task_names
        self._tasks = np.repeat(np.arange(len(task_names)), envs_per_task)
        self._returns = np.zeros(len(self._tasks))
        self._reached = np.zeros(len(self._tasks), dtype=bool)
        self._broken = np.zeros(len(self._tasks), dtype=bool)
        self._ended: list[tuple[int, float, bool]] = []
        self.dropped = np.zeros(len(task_names), dtype=np.int64)

    def add(
        self,
        rewards: np.ndarray,
        success: np.ndarray,
        ended: np.ndarray,
        broken: np.ndarray | None = None,
    ) -> None:
        """Take one step of all environments, each argument ``(K * N,)``.

        Args:
            rewards: Of the step.
            success: Whether it was one.
            ended: Whose episode ended with it.
            broken: Whose step is lost; by default no one's. Their episodes are dropped, whether
                they end with it or go on: what is left of one is no whole episode.
        """
        self._returns += rewards
        self._reached |= success.astype(bool)
        if broken is None:
            broken = np.zeros_like(ended)
        np.add.at(self.dropped, self._tasks[broken & ~self._broken], 1)
        self._broken |= broken
        for env in np.flatnonzero(ended & ~self._broken):
            episode = self._tasks[env], self._returns[env], self._reached[env]
            self._ended.append((int(episode[0]), float(episode[1]), bool(episode[2])))
        self._returns[ended], self._reached[ended], self._broken[ended] = 0.0, False, False

    def pop_metrics(self) -> dict[str, float | int]:
        """Return means over the episodes ended since the last call, of tasks that had any.

        Beside them, the number of episodes dropped so far, of tasks that had any.
        """
        metrics: dict[str, float | int] = {}
        for k, name in enumerate(self._task_names):
            episodes = [(value, reached) for task, value, reached in self._ended if task == k]
            if episodes:
                returns, reached = zip(*episodes, strict=True)
                metrics[f"train/return/{name}"] = float(np.mean(returns))
                metrics[f"train/success_rate/{name}"] = float(np.mean(reached))
            if self.dropped[k]:
                metrics[f"train/dropped_episodes/{name}"] = int(self.dropped[k])
        self._ended.clear()
        return metrics

    def state_dict(self) -> State:
        """Return the episodes under way, and those that were not reported yet."""
        tasks, returns, reached = zip(*self._ended, strict=True) if self._ended else ((), (), ())
        return {
            "returns": self._returns.copy(),
            "reached": self._reached.copy(),
            "broken": self._broken.copy(),
            "dropped": self.dropped.copy(),
            "ended": {
                "tasks": np.array(tasks, np.int64),
                "returns": np.array(returns, np.float64),
                "reached": np.array(reached, np.bool_),
            },
        }

    def load_state_dict(self, state: State) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: It is one of other tasks or another number of environments.
        """
        ended = state["ended"]
        if not np.isin(ended["tasks"], np.arange(len(self._task_names))).all():
            raise ValueError("`ended` has tasks that are unknown here")
        for name in ("returns", "reached", "broken"):
            if state[name].shape != self._returns.shape:
                raise ValueError(f"`{name}` has shape {state[name].shape}")
        self._returns[:], self._reached[:] = state["returns"], state["reached"]
        self._broken[:] = state["broken"]
        self.dropped[:] = state["dropped"]
        columns = (ended[name].tolist() for name in ("tasks", "returns", "reached"))
        self._ended = [(int(k), float(r), bool(s)) for k, r, s in zip(*columns, strict=True)]
