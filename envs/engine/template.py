"""One official environment per task: the source of its resets, goals and Python rewards."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from numpy.typing import NDArray

from mtrl.cache import cache_folder

from ..metaworld import draw_goals
from .cache import environment, read_arrays, write_arrays
from .models import model_origin
from .rig import FRAME_SIZE
from .snapshot import LiveView, Snapshot, read_snapshot, write_snapshot

STATE_SPEC = mujoco.mjtState.mjSTATE_INTEGRATION


class Template:
    """The official environment of one task and a snapshot of its reset for each goal played."""

    def __init__(self, env: SawyerXYZEnv, goals: NDArray[np.float64]) -> None:
        """Take over an environment that nobody else steps.

        Args:
            env: Ready to be reset; its `_last_rand_vec` selects the goal.
            goals: (50, G).
        """
        self.env = env
        self.goals = goals
        self._snapshots: dict[int, Snapshot] = {}
        self._folder = cache_folder("resets", *_origin(env))

    def snapshot(self, goal: int) -> Snapshot:
        """Return the state after the official reset with a goal; taken once and kept on disk."""
        if goal not in self._snapshots:
            self._snapshots[goal] = self._load_or_take(goal)
        return self._snapshots[goal]

    def reset_env(self, goal: int) -> NDArray[np.float64]:
        """Reset the official environment itself: the first observation (39,)."""
        self.env._last_rand_vec = self.goals[goal].copy()
        observation, _ = self.env.reset()
        return np.asarray(observation, np.float64)

    def _load_or_take(self, goal: int) -> Snapshot:
        if self._folder is None:
            return self._take(goal)
        path = self._folder / f"{hashlib.sha256(self.goals[goal].tobytes()).hexdigest()[:32]}"
        snapshot = read_snapshot(path)
        if snapshot is None:
            snapshot = self._take(goal)
            write_snapshot(path, snapshot)
        return snapshot

    def _take(self, goal: int) -> Snapshot:
        observation = self.reset_env(goal)
        model, data = self.env.model, self.env.data
        physics = np.empty(mujoco.mj_stateSize(model, STATE_SPEC))
        mujoco.mj_getState(model, data, physics, STATE_SPEC)
        return Snapshot(
            physics=physics,
            body_pos=model.body_pos.ravel().copy(),
            site_pos=model.site_pos.ravel().copy(),
            observation=observation,
            frame=np.array(self.env._prev_obs[:FRAME_SIZE], np.float64),
            attributes=numeric_attributes(self.env),
        )


def cached_goals(
    envs: Sequence[SawyerXYZEnv], task_names: Sequence[str], seed: int, *, one_stream: bool
) -> list[NDArray[np.float64]]:
    """Draw each task's 50 goals, or read them from the cache; see `draw_goals`."""
    origins = [_origin(env) for env in envs]
    folder = cache_folder("goals", origins, list(task_names), seed, one_stream)
    path = folder / "goals" if folder else None
    stored = read_arrays(path) if path else None
    if stored is not None:
        return [stored[0][str(index)] for index in range(len(envs))]
    goals = draw_goals(list(envs), seed, one_stream=one_stream)
    if path:
        write_arrays(path, {str(index): drawn for index, drawn in enumerate(goals)})
    return goals


def _origin(env: SawyerXYZEnv) -> tuple[object, ...]:
    """All that the numbers of an environment's reset depend on, but for the goal."""
    kinds = type(env).__mro__
    names = tuple(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
    # The classes' own sources, and those of the functions here that play and record a reset.
    modules = {kind.__module__ for kind in kinds} | {draw_goals.__module__, __name__}
    modules.add(Snapshot.__module__)
    sources = tuple(sorted(_source(module) for module in modules))
    model = model_origin(Path(env.fullpath))
    return (environment(), model, env.reward_function_version, names, sources)


@functools.cache
def _source(module: str) -> str:
    file = getattr(sys.modules[module], "__file__", None)
    content = Path(file).read_bytes() if file else b""
    return f"{module} {hashlib.sha256(content).hexdigest()}"


def numeric_attributes(env: SawyerXYZEnv) -> dict[str, Any]:
    """Collect an environment's numbers, arrays copied and views into mjData marked as such."""
    attributes: dict[str, Any] = {}
    for name, value in vars(env).items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            attributes[name] = _live_view(value, env.data) or value.copy()
        elif value is None or isinstance(value, (bool, int, float, np.number, np.bool_)):
            attributes[name] = value
    return attributes


def _live_view(array: NDArray[Any], data: mujoco.MjData) -> LiveView | None:
    offset = array.ctypes.data - data.qpos.ctypes.data
    inside = 0 <= offset < data.nbuffer
    return LiveView(offset, array.size) if inside else None
