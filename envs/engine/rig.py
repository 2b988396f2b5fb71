"""Everything a kernel needs to know about one environment, as one record of addresses."""

from typing import Any

import mujoco
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from numpy.typing import NDArray

from .layout import bvh_count_offset, mjdata_layout
from .scene import ObservedObject, Source, Task

OBSERVATION_SIZE = 39
FRAME_SIZE = 18
OBJECT_SIZE = 7
MAX_OBJECTS = 2

ROTATION_CONSTANT = 0
ROTATION_QUATERNION = 1
ROTATION_MATRIX = 2

RIG_DTYPE = np.dtype(
    [
        # MuJoCo's structs, and fields of them.
        ("mjmodel", "i8"),
        ("mjdata", "i8"),
        ("body_pos", "i8"),
        ("site_pos", "i8"),
        ("num_body_pos", "i8"),
        ("num_site_pos", "i8"),
        ("bvh_count", "i8"),
        ("time", "i8"),
        ("ncon", "i8"),
        ("nefc", "i8"),
        ("contact", "i8"),
        ("efc_force", "i8"),
        ("contact_size", "i8"),
        ("geom1", "i8"),
        ("efc_address", "i8"),
        ("mocap_pos", "i8"),
        ("mocap_quat", "i8"),
        ("ctrl", "i8"),
        # The hand.
        ("hand", "i8"),
        ("right_claw", "i8"),
        ("left_claw", "i8"),
        ("right_tip", "i8"),
        ("left_tip", "i8"),
        ("left_pad", "i8"),
        ("right_pad", "i8"),
        ("mocap_low", "f8", (3,)),
        ("mocap_high", "f8", (3,)),
        ("action_scale", "f4"),
        ("frame_skip", "i4"),
        # The observed objects and the observation's bounds.
        ("num_objects", "i8"),
        ("object_position", "i8", (MAX_OBJECTS,)),
        ("object_offset", "f8", (MAX_OBJECTS, 3)),
        ("rotation_kind", "i8", (MAX_OBJECTS,)),
        ("object_rotation", "i8", (MAX_OBJECTS,)),
        ("constant_rotation", "f8", (MAX_OBJECTS, 4)),
        ("dial_angle", "i8", (MAX_OBJECTS,)),
        ("dial_radius", "f8", (MAX_OBJECTS,)),
        ("goal", "i8"),
        ("obs_low", "f8", (OBSERVATION_SIZE,)),
        ("obs_high", "f8", (OBSERVATION_SIZE,)),
        # The scene record, and the reward that reads it (0: the official Python one).
        ("reward", "i8"),
        ("measures", "i8"),
        ("scene", "i8"),
        ("scene_action", "i8"),
        ("scene_obs", "i8"),
        ("scene_tcp", "i8"),
        ("scene_left_pad", "i8"),
        ("scene_right_pad", "i8"),
        ("scene_touching", "i8"),
        ("first_live", "i8"),
        ("end_live", "i8"),
        ("object_geom", "i4"),
        ("left_pad_geom", "i4"),
        ("right_pad_geom", "i4"),
    ],
    align=True,
)

_UNUSED_COUNT = np.zeros(1, np.int32)  # stands in where a model's own count is not found

# One live field of a scene: `count` float64 values copied from `source` to `target`.
LIVE_DTYPE = np.dtype([("source", "i8"), ("target", "i8"), ("count", "i8")])


def fill_physics(rig: Any, env: SawyerXYZEnv, data: mujoco.MjData) -> None:
    """Enter what is the same for every task: the hand, its limits, MuJoCo's structs.

    Args:
        rig: The record to fill.
        env: An official environment of the task, with its observation space set.
        data: The simulation of this environment.
    """
    layout = mjdata_layout()
    for name in ("time", "ncon", "nefc", "contact", "efc_force"):
        rig[name] = data._address + getattr(layout, name)
    for name in ("contact_size", "geom1", "efc_address"):
        rig[name] = getattr(layout, name)
    rig["mjdata"] = data._address
    rig["mocap_pos"] = _address(data.mocap_pos)
    rig["mocap_quat"] = _address(data.mocap_quat)
    rig["ctrl"] = _address(data.ctrl)
    rig["hand"] = _address(data.body("hand").xpos)
    rig["right_claw"] = _address(data.body("rightclaw").xpos)
    rig["left_claw"] = _address(data.body("leftclaw").xpos)
    rig["right_tip"] = _address(data.site("rightEndEffector").xpos)
    rig["left_tip"] = _address(data.site("leftEndEffector").xpos)
    rig["left_pad"] = _address(data.body("leftpad").xpos)
    rig["right_pad"] = _address(data.body("rightpad").xpos)
    rig["mocap_low"] = env.mocap_low
    rig["mocap_high"] = env.mocap_high
    rig["action_scale"] = env.action_scale
    rig["frame_skip"] = env.frame_skip
    rig["obs_low"] = env.sawyer_observation_space.low
    rig["obs_high"] = env.sawyer_observation_space.high


def set_model(rig: Any, model: mujoco.MjModel) -> None:
    """Enter the model that the environment is stepped with."""
    rig["mjmodel"] = model._address
    rig["body_pos"] = _address(model.body_pos)
    rig["site_pos"] = _address(model.site_pos)
    rig["num_body_pos"] = model.body_pos.size
    rig["num_site_pos"] = model.site_pos.size
    offset = bvh_count_offset()
    rig["bvh_count"] = _UNUSED_COUNT.ctypes.data if offset is None else model._address + offset


def fill_task(rig: Any, task: Task, data: mujoco.MjData, scene: NDArray[Any]) -> list[Any]:
    """Enter a task's observed objects and scene.

    Args:
        rig: The record to fill.
        task: The task.
        data: The simulation of this environment.
        scene: (1,) the environment's own scene record.

    Returns:
        Its live fields, as rows of `LIVE_DTYPE`.
    """
    rig["num_objects"] = len(task.objects)
    for slot, observed in enumerate(task.objects):
        _fill_object(rig, slot, observed, data)
    if task.goal is not None:
        rig["goal"] = _address(task.goal.view(data))
    rig["scene"] = scene.ctypes.data
    for name in ("action", "obs", "tcp", "left_pad", "right_pad", "touching"):
        rig[f"scene_{name}"] = _field_address(scene, name)
    rig["left_pad_geom"] = data.geom("leftpad_geom").id
    rig["right_pad_geom"] = data.geom("rightpad_geom").id
    rig["object_geom"] = -1 if task.touching is None else data.geom(task.touching).id
    return [
        (_address(source.view(data)), _field_address(scene, name), source.view(data).size)
        for name, source in task.live.items()
    ]


def _fill_object(rig: Any, slot: int, observed: ObservedObject, data: mujoco.MjData) -> None:
    rig["object_position"][slot] = _address(observed.position.view(data))
    # Adding -0.0 changes no float, not even a zero's sign.
    rig["object_offset"][slot] = -0.0 if observed.offset is None else observed.offset
    if observed.dial is not None:
        joint, radius = observed.dial
        rig["dial_angle"][slot] = _address(joint.view(data))
        rig["dial_radius"][slot] = radius
    if isinstance(observed.rotation, Source):
        matrix = observed.rotation.quantity == "xmat"
        rig["rotation_kind"][slot] = ROTATION_MATRIX if matrix else ROTATION_QUATERNION
        rig["object_rotation"][slot] = _address(observed.rotation.view(data))
    else:
        rig["rotation_kind"][slot] = ROTATION_CONSTANT
        rig["constant_rotation"][slot] = observed.rotation


def _field_address(record: NDArray[Any], name: str) -> int:
    fields = record.dtype.fields
    assert fields is not None
    return int(record.ctypes.data + fields[name][1])


def _address(array: NDArray[np.float64]) -> int:
    return int(array.ctypes.data)
