"""The state of one of Meta-World's own environments, which the package itself cannot save.

Its classes keep MuJoCo's simulation, which has a complete state of its own, and plain numbers and
arrays as attributes. What else there is (the model with the goal's positions, views into the
simulation) an official reset with the same goal sets up again.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from numpy.typing import NDArray

_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION


def physics_size(env: SawyerXYZEnv) -> int:
    """Count the numbers of MuJoCo's integration state."""
    return int(mujoco.mj_stateSize(env.model, _PHYSICS))


def get_physics(env: SawyerXYZEnv) -> NDArray[np.float64]:
    """Copy MuJoCo's integration state (S,), warm start and mocap included."""
    state = np.empty(physics_size(env))
    mujoco.mj_getState(env.model, env.data, state, _PHYSICS)
    return state


def get_attributes(env: SawyerXYZEnv) -> dict[str, Any]:
    """Collect an environment's own numbers and arrays by name; NumPy's scalars as arrays ()."""
    attributes: dict[str, Any] = {}
    for name, value in vars(env).items():
        if isinstance(value, (np.ndarray, np.generic)):
            if value.dtype.kind in "fbiu" and not _is_view(value, env.data):
                attributes[name] = np.array(value)
        elif value is None or isinstance(value, (bool, int, float)):
            attributes[name] = value
    return attributes


def restore(env: SawyerXYZEnv, physics: NDArray[np.float64], attributes: dict[str, Any]) -> None:
    """Continue in an environment that was just reset with the goal of the state's episode.

    Raises:
        ValueError: for a state of another task.
    """
    if physics.size != physics_size(env):
        raise ValueError(f"`physics` has {physics.size} numbers, expected {physics_size(env)}")
    own = get_attributes(env)
    # Some numbers come into being in the first steps; nothing else may be replaced by a number.
    if taken := sorted(name for name in attributes if name not in own and hasattr(env, name)):
        raise ValueError(f"`attributes` has {taken}, which are no numbers of {type(env).__name__}")
    mujoco.mj_setState(env.model, env.data, physics, _PHYSICS)
    mujoco.mj_forward(env.model, env.data)  # positions of bodies, which some rewards look back at
    mujoco.mj_setState(env.model, env.data, physics, _PHYSICS)  # the warm start it has changed
    for name, value in attributes.items():
        if isinstance(value, np.ndarray):
            setattr(env, name, value.copy() if value.shape else value[()])
        else:
            setattr(env, name, value)


def _is_view(value: Any, data: mujoco.MjData) -> bool:
    if not isinstance(value, np.ndarray):
        return False
    offset = value.ctypes.data - data.qpos.ctypes.data  # qpos begins the buffer
    return bool(0 <= offset < data.nbuffer)
