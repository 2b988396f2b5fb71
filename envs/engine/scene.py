"""What a task is to the engine: which parts of the simulation it shows, reads and rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import mujoco
import numpy as np
from numpy.typing import NDArray

MEASURES = (
    "success",
    "near_object",
    "grasp_success",
    "grasp_reward",
    "in_place_reward",
    "obj_to_target",
)
MEASURES_DTYPE = np.dtype([("reward", "f8"), *((name, "f8") for name in MEASURES)])

# Every task's scene record starts with these.
_COMMON_FIELDS: list[Any] = [
    ("action", "f4", (4,)),
    ("obs", "f8", (39,)),
    ("tcp", "f8", (3,)),
    ("left_pad", "f8", (3,)),
    ("right_pad", "f8", (3,)),
    ("touching", "f8"),
]

Part = Literal["body", "geom", "site", "joint"]


@dataclass(frozen=True)
class Source:
    """A few float64 values that MuJoCo computes, by the name of their part."""

    part: Part
    name: str
    quantity: Literal["xpos", "xquat", "xmat", "qpos"]

    def view(self, data: mujoco.MjData) -> NDArray[np.float64]:
        """View the values inside `data`; the view stays valid as long as `data` lives."""
        view: NDArray[np.float64] = getattr(getattr(data, self.part)(self.name), self.quantity)
        return view


def position(part: Part, name: str) -> Source:
    """Position (3,) in the world."""
    return Source(part, name, "xpos")


def rotation_matrix(part: Part, name: str) -> Source:
    """Rotation (9,) in the world, row by row."""
    return Source(part, name, "xmat")


def quaternion(name: str) -> Source:
    """Rotation (4,) of a body in the world, w x y z."""
    return Source("body", name, "xquat")


def joint_position(name: str) -> Source:
    """Angle or displacement (1,) of a joint."""
    return Source("joint", name, "qpos")


@dataclass(frozen=True)
class ObservedObject:
    """Seven numbers of the observation: where an object is and how it is turned.

    Attributes:
        position: Its position, to which `offset` is added.
        rotation: A quaternion, which is shown as it is; a matrix, which is shown as a quaternion
            x y z w; or four constants.
        offset: (3,).
        dial: A joint and a radius: the position moves on a circle with the joint's angle.
    """

    position: Source
    rotation: Source | tuple[float, float, float, float]
    offset: tuple[float, float, float] | None = None
    dial: tuple[Source, float] | None = None


@dataclass(frozen=True)
class Task:
    """One task in kernels.

    Attributes:
        evaluate: The reward, `evaluate(s, out)`: reads the scene record `s` and fills the record
            `out` (`reward` and the six measures). Its official twin is `evaluate_state`.
        objects: The observed objects, one or two.
        constants: Attributes of the official environment that a reset sets and an episode keeps;
            `_target_pos` becomes `s.target_pos`.
        live: What else of the simulation the reward reads: field of `s` -> source.
        goal: Where the observed goal is, for a task whose goal follows the simulation.
        touching: Geom for which `s.touching` says whether both pads press on it.

    The scene record also has `action` (4,) float32, as given; `obs` (39,), clipped; `tcp`,
    `left_pad` and `right_pad` (3,).
    """

    evaluate: Callable[[Any, Any], None]
    objects: tuple[ObservedObject, ...]
    constants: tuple[str, ...]
    live: Mapping[str, Source] = field(default_factory=dict)
    goal: Source | None = None
    touching: str | None = None


def constant_field(attribute: str) -> str:
    """Name the scene's field for an attribute of the official environment."""
    return attribute.lstrip("_")


def scene_dtype(
    task: Task, data: mujoco.MjData, constants: Mapping[str, NDArray[np.float64]]
) -> np.dtype[Any]:
    """Lay out a task's scene record.

    Args:
        task: The task.
        data: A simulation of the task, for the sizes of its live fields.
        constants: Field -> value of the constants of any goal, for theirs.
    """
    fields = list(_COMMON_FIELDS)
    for name, source in task.live.items():
        fields.append((name, "f8", source.view(data).shape))
    for name, value in constants.items():
        fields.append((name, "f8", value.shape) if value.shape else (name, "f8"))
    return np.dtype(fields, align=True)
