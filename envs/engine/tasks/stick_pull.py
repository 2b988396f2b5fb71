"""stick-pull-v3: pull the thermos with the stick."""

from typing import Any

import numpy as np

from ..caging import gripper_caging_reward
from ..compiler import kernel
from ..exact import Vector, distance, scaled_distance
from ..scene import ObservedObject, Task, position, rotation_matrix
from ..shaping import hamacher_product, tolerance

_TARGET_RADIUS = 0.05


@kernel
def _stick_is_inserted(handle: Vector, end_of_stick: Vector) -> bool:
    beside = abs(end_of_stick[1] - handle[1]) <= 0.040
    level = abs(end_of_stick[2] - handle[2]) <= 0.060
    return bool(end_of_stick[0] >= handle[0] and beside and level)


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerStickPullEnvV3`."""
    stick = s.obs[4:7]
    handle = s.obs[11:14]
    container = np.array([handle[0] + 0.05, handle[1] + 0.0, handle[2] + 0.0])
    container_init_pos = np.array(
        [s.obj_init_pos[0] + 0.05, s.obj_init_pos[1] + 0.0, s.obj_init_pos[2] + 0.0]
    )
    tcp_opened = s.obs[3]
    tcp_to_stick = distance(stick, s.tcp)
    handle_to_target = distance(handle, s.target_pos)

    scale = (1.0, 1.0, 2.0)
    stick_in_place = tolerance(
        scaled_distance(stick, container, scale),
        bounds=(0.0, _TARGET_RADIUS),
        margin=scaled_distance(s.stick_init_pos, container_init_pos, scale),
    )
    stick_in_place_2 = tolerance(
        distance(stick, s.target_pos),
        bounds=(0.0, _TARGET_RADIUS),
        margin=distance(s.stick_init_pos, s.target_pos),
    )
    container_in_place = tolerance(
        distance(container, s.target_pos),
        bounds=(0.0, _TARGET_RADIUS),
        margin=distance(s.obj_init_pos, s.target_pos),
    )

    object_grasped, single = gripper_caging_reward(
        s,
        stick,
        s.obj_init_pos,
        obj_radius=0.014,
        pad_success_thresh=0.05,
        object_reach_radius=0.01,
        xz_thresh=0.01,
        high_density=True,
    )
    held = tcp_to_stick < 0.02 and tcp_opened > 0 and stick[2] - 0.01 > s.stick_init_pos[2]
    if held:
        object_grasped, single = 1.0, False
    grasped_and_in_place = hamacher_product(object_grasped, stick_in_place, single)
    reward = grasped_and_in_place
    inserted = _stick_is_inserted(handle, s.end_of_stick)
    if held:
        reward = 1.0 + grasped_and_in_place + 5.0 * stick_in_place
        if inserted:
            reward = 1.0 + grasped_and_in_place + 5.0
            reward = reward + 2.0 * stick_in_place_2 + 1.0 * container_in_place
            if handle_to_target <= 0.12:
                reward = 10.0

    out.reward = reward
    out.success = handle_to_target <= 0.12 and inserted
    out.near_object = tcp_to_stick <= 0.03
    out.grasp_success = s.touching > 0 and tcp_opened > 0 and stick[2] - 0.02 > s.obj_init_pos[2]
    out.grasp_reward = object_grasped
    out.in_place_reward = stick_in_place
    out.obj_to_target = handle_to_target


TASK = Task(
    evaluate=evaluate,
    objects=(
        ObservedObject(position("body", "stick"), rotation_matrix("body", "stick")),
        ObservedObject(position("site", "insertion"), (0.0, 0.0, 0.0, 0.0)),
    ),
    constants=("_target_pos", "obj_init_pos", "stick_init_pos", "init_tcp"),
    live={"end_of_stick": position("site", "stick_end")},
    touching="objGeom",
)
