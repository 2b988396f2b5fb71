"""One official environment per task: the source of its resets, goals and Python rewards."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from numpy.typing import NDArray

from .rig import FRAME_SIZE
from .scene import Task, constant_field

STATE_SPEC = mujoco.mjtState.mjSTATE_INTEGRATION


@dataclass(frozen=True)
class Snapshot:
    """What an official reset leaves behind for one goal.

    Attributes:
        physics: (S,) MuJoCo's integration state, warm start and mocap included.
        body_pos: The model's body positions, flat.
        site_pos: The model's site positions, flat.
        observation: (39,) the first observation.
        frame: (18,) the frame that the next observation will show as the previous one.
        attributes: The environment's own numbers, by name.
    """

    physics: NDArray[np.float64]
    body_pos: NDArray[np.float64]
    site_pos: NDArray[np.float64]
    observation: NDArray[np.float64]
    frame: NDArray[np.float64]
    attributes: dict[str, Any]

    def constants(self, task: Task) -> dict[str, NDArray[np.float64]]:
        """Pick the constants of a task's scene: field -> value.

        Raises:
            TypeError: for an attribute that follows the simulation instead of keeping its value.
        """
        constants = {}
        for name in task.constants:
            value = self.attributes[name]
            if isinstance(value, LiveView):
                raise TypeError(f"{name} is a view into the simulation: declare it as live")
            constants[constant_field(name)] = np.asarray(value, np.float64)
        return constants


@dataclass(frozen=True)
class LiveView:
    """An attribute that is a view into `mjData`: its values follow the simulation.

    Attributes:
        offset: Bytes from the start of mjData's buffer.
        size: Number of float64 values.
    """

    offset: int
    size: int

    def of(self, data: mujoco.MjData) -> NDArray[np.float64]:
        """Make the same view into another simulation of the same model."""
        address = data.qpos.ctypes.data + self.offset  # qpos begins the buffer
        return np.ctypeslib.as_array((ctypes.c_double * self.size).from_address(address))


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

    def snapshot(self, goal: int) -> Snapshot:
        """Return the state after the official reset with a goal (16 ms the first time)."""
        if goal not in self._snapshots:
            self._snapshots[goal] = self._take(goal)
        return self._snapshots[goal]

    def reset_env(self, goal: int) -> NDArray[np.float64]:
        """Reset the official environment itself: the first observation (39,)."""
        self.env._last_rand_vec = self.goals[goal].copy()
        observation, _ = self.env.reset()
        return np.asarray(observation, np.float64)

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
