"""pick-place-wall-v3: lift the puck over the wall to the goal."""

from typing import Any

import numpy as np

from ..caging import gripper_caging_reward
from ..exact import distance, plus, scaled_distance
from ..scene import ObservedObject, Task, position, rotation_matrix
from ..shaping import hamacher_product, tolerance

_TARGET_RADIUS = 0.05


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerPickPlaceWallEnvV3`."""
    obj = s.obs[4:7]
    tcp_opened = s.obs[3]
    tcp_to_obj = distance(obj, s.tcp)
    midpoint = np.array([s.target_pos[0], 0.77, 0.25])
    scale = (1.0, 1.0, 3.0)
    obj_to_target = distance(obj, s.target_pos)

    in_place_part1 = tolerance(
        scaled_distance(obj, midpoint, scale),
        bounds=(0.0, _TARGET_RADIUS),
        margin=scaled_distance(s.obj_init_pos, midpoint, scale),
    )
    in_place_part2 = tolerance(
        obj_to_target,
        bounds=(0.0, _TARGET_RADIUS),
        margin=distance(s.obj_init_pos, s.target_pos),
    )
    object_grasped, single = gripper_caging_reward(
        s,
        obj,
        s.obj_init_pos,
        obj_radius=0.015,
        pad_success_thresh=0.05,
        object_reach_radius=0.01,
        xz_thresh=0.005,
    )
    grasped_and_in_place = hamacher_product(object_grasped, in_place_part1, single)
    reward = grasped_and_in_place
    if tcp_to_obj < 0.02 and tcp_opened > 0 and obj[2] - 0.015 > s.obj_init_pos[2]:
        reward = plus(plus(grasped_and_in_place, 1.0, single), 4.0 * in_place_part1, single)
        if obj[1] > 0.75:
            reward = plus(plus(grasped_and_in_place, 1.0, single), 4.0, single)
            reward = plus(reward, 3.0 * in_place_part2, single)
    if obj_to_target < _TARGET_RADIUS:
        reward = 10.0

    out.reward = reward
    out.success = obj_to_target <= 0.07
    out.near_object = tcp_to_obj <= 0.03
    out.grasp_success = s.touching > 0 and tcp_opened > 0 and obj[2] - 0.02 > s.obj_init_pos[2]
    out.grasp_reward = object_grasped
    out.in_place_reward = in_place_part2
    out.obj_to_target = obj_to_target


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("geom", "objGeom"), rotation_matrix("geom", "objGeom")),),
    constants=(
        "_target_pos",
        "obj_init_pos",
        "init_tcp",
    ),
    touching="objGeom",
)
