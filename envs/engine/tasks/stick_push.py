"""stick-push-v3: push the thermos with the stick."""

from typing import Any

import numpy as np

from ..caging import gripper_caging_reward
from ..exact import distance
from ..scene import ObservedObject, Task, position, rotation_matrix
from ..shaping import tolerance

_TARGET_RADIUS = 0.12


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerStickPushEnvV3`."""
    stick = np.array([s.obs[4] + 0.015, s.obs[5] + 0.0, s.obs[6] + 0.0])
    container = s.obs[11:14]
    tcp_opened = s.obs[3]
    tcp_to_stick = distance(stick, s.tcp)

    stick_in_place = tolerance(
        distance(stick, s.target_pos),
        bounds=(0.0, _TARGET_RADIUS),
        margin=distance(s.stick_init_pos, s.target_pos) - _TARGET_RADIUS,
    )
    container_to_target = distance(container, s.target_pos)
    container_in_place = tolerance(
        container_to_target,
        bounds=(0.0, _TARGET_RADIUS),
        margin=distance(s.obj_init_pos, s.target_pos) - _TARGET_RADIUS,
    )

    object_grasped, _ = gripper_caging_reward(
        s,
        stick,
        s.stick_init_pos,
        obj_radius=0.04,
        pad_success_thresh=0.05,
        object_reach_radius=0.01,
        xz_thresh=0.01,
        high_density=True,
    )
    reward = object_grasped
    if tcp_to_stick < 0.02 and tcp_opened > 0 and stick[2] - 0.01 > s.stick_init_pos[2]:
        object_grasped = 1.0
        reward = 2.0 + 5.0 * stick_in_place + 3.0 * container_in_place
        if container_to_target <= _TARGET_RADIUS:
            reward = 10.0

    lifted = s.obs[6] - 0.01 > s.stick_init_pos[2]
    grasp_success = s.touching > 0 and tcp_opened > 0 and lifted
    out.reward = reward
    out.success = grasp_success and container_to_target <= 0.12
    out.near_object = tcp_to_stick <= 0.03
    out.grasp_success = grasp_success
    out.grasp_reward = object_grasped
    out.in_place_reward = stick_in_place
    out.obj_to_target = container_to_target


TASK = Task(
    evaluate=evaluate,
    objects=(
        ObservedObject(position("body", "stick"), rotation_matrix("body", "stick")),
        ObservedObject(
            position("site", "insertion"), (0.0, 0.0, 0.0, 0.0), offset=(0.0, 0.09, 0.0)
        ),
    ),
    constants=("_target_pos", "obj_init_pos", "stick_init_pos", "init_tcp"),
    touching="objGeom",
)
