"""basketball-v3: dunk the ball."""

from typing import Any

import numpy as np

from ..caging import gripper_caging_reward
from ..exact import distance, scaled_distance
from ..scene import ObservedObject, Task, position, quaternion
from ..shaping import hamacher_product, tolerance

_TARGET_RADIUS = 0.08


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerBasketballEnvV3`."""
    obj = s.obs[4:7]
    # The target is slightly above the hoop, and errors in z weigh more.
    target = np.array([s.target_pos[0], s.target_pos[1], 0.3])
    scale = (1.0, 1.0, 2.0)
    target_to_obj = scaled_distance(obj, target, scale)
    in_place = tolerance(
        target_to_obj,
        bounds=(0.0, _TARGET_RADIUS),
        margin=scaled_distance(s.obj_init_pos, target, scale),
    )
    tcp_opened = s.obs[3]
    tcp_to_obj = distance(obj, s.tcp)

    object_grasped, single = gripper_caging_reward(
        s,
        obj,
        s.obj_init_pos,
        object_reach_radius=0.01,
        obj_radius=0.025,
        pad_success_thresh=0.06,
        xz_thresh=0.005,
        high_density=True,
    )
    lifted = tcp_to_obj < 0.035 and tcp_opened > 0 and obj[2] - 0.01 > s.obj_init_pos[2]
    if lifted:
        object_grasped, single = 1.0, False
    reward = hamacher_product(object_grasped, in_place, single)
    if lifted:
        reward += 1.0 + 5.0 * in_place
    if target_to_obj < _TARGET_RADIUS:
        reward = 10.0

    out.reward = reward
    out.success = target_to_obj <= _TARGET_RADIUS
    out.near_object = tcp_to_obj <= 0.05
    out.grasp_success = tcp_opened > 0 and obj[2] - 0.03 > s.obj_init_pos[2]
    out.grasp_reward = object_grasped
    out.in_place_reward = in_place
    out.obj_to_target = target_to_obj


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("body", "bsktball"), quaternion("bsktball")),),
    constants=("obj_init_pos", "init_tcp"),
    live={"target_pos": position("site", "goal")},
    goal=position("site", "goal"),
)
