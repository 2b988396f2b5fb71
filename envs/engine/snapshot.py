"""What an official reset leaves behind, and how it is kept on disk: 0.5 ms to read, 16 to redo."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from .cache import Arrays, read_arrays, write_arrays
from .scene import Task, constant_field


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


_ARRAYS = ("physics", "body_pos", "site_pos", "observation", "frame")


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Keep a snapshot on disk."""
    arrays: Arrays = {name: getattr(snapshot, name) for name in _ARRAYS}
    attributes: dict[str, list[Any]] = {}
    for name, value in snapshot.attributes.items():
        if isinstance(value, LiveView):
            attributes[name] = ["live", value.offset, value.size]
        elif isinstance(value, np.ndarray):
            arrays[f"attributes/{name}"] = value
            attributes[name] = ["array"]
        elif isinstance(value, np.generic):
            attributes[name] = ["numpy", value.dtype.str, value.item()]
        else:
            attributes[name] = ["python", value]
    write_arrays(path, arrays, attributes)


def read_snapshot(path: Path) -> Snapshot | None:
    """Read what `write_snapshot` kept; None if it is missing or damaged."""
    stored = read_arrays(path)
    if stored is None:
        return None
    arrays, attributes = stored
    decoded = {name: _decode(name, *coded, arrays=arrays) for name, coded in attributes.items()}
    return Snapshot(**{name: arrays[name] for name in _ARRAYS}, attributes=decoded)


def _decode(name: str, kind: str, *values: Any, arrays: Arrays) -> Any:
    if kind == "live":
        return LiveView(*values)
    if kind == "array":
        return arrays[f"attributes/{name}"]
    if kind == "numpy":
        # Beside float32, NumPy's scalars round otherwise than Python's: the kind is kept.
        dtype, value = values
        return np.dtype(dtype).type(value)
    return values[0]
