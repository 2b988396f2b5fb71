"""bin-picking-v3: move the cube from one bin to the other."""

from typing import Any

import numpy as np

from ..caging import gripper_caging_reward
from ..compiler import kernel
from ..exact import Vector, distance, distance_xy, plus
from ..numerics import log
from ..scene import ObservedObject, Task, position, quaternion
from ..shaping import hamacher_product, tolerance

_TARGET_RADIUS = 0.05


@kernel
def _funnel(hand: Vector, center: Vector) -> float:
    radius = distance_xy(hand, center)
    return 0.02 * log(radius - 0.03) + 0.2 if radius > 0.03 else 0.0


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerBinPickingEnvV3`."""
    hand = s.obs[:3]
    obj = s.obs[4:7]
    target_to_obj = distance(obj, s.target_pos)
    # The official code fills this in at an episode's first step.
    if np.isnan(s.target_to_obj_init):
        s.target_to_obj_init = target_to_obj
    in_place = tolerance(target_to_obj, bounds=(0.0, _TARGET_RADIUS), margin=s.target_to_obj_init)

    # The floor is a pair of funnels, around the cube's first position and around the goal.
    floor = min(_funnel(hand, s.obj_init_pos), _funnel(hand, s.target_pos))
    above_floor = 1.0
    if hand[2] < floor:
        above_floor = tolerance(max(floor - hand[2], 0.0), bounds=(0.0, 0.01), margin=0.05)

    object_grasped, single = gripper_caging_reward(
        s,
        obj,
        s.obj_init_pos,
        obj_radius=0.015,
        pad_success_thresh=0.05,
        object_reach_radius=0.01,
        xz_thresh=0.01,
        desired_gripper_effort=0.7,
        high_density=True,
    )
    reward = hamacher_product(object_grasped, in_place, single)

    near_object = distance(obj, hand) < 0.04
    grasp_success = near_object and obj[2] - 0.02 > s.obj_init_pos[2] and not s.obs[3] < 0.43
    if grasp_success:
        reward = plus(reward, 1.0 + 5.0 * hamacher_product(above_floor, in_place), single)
    if target_to_obj < _TARGET_RADIUS:
        reward = 10.0

    out.reward = reward
    out.success = target_to_obj <= 0.05
    out.near_object = near_object
    out.grasp_success = grasp_success
    out.grasp_reward = object_grasped
    out.in_place_reward = in_place
    out.obj_to_target = target_to_obj


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("body", "obj"), quaternion("obj")),),
    constants=("obj_init_pos", "init_tcp", "_target_to_obj_init"),
    live={"target_pos": position("body", "bin_goal")},
    goal=position("body", "bin_goal"),
)
