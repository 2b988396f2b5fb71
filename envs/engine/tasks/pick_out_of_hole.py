"""pick-out-of-hole-v3: lift the puck out of the hole."""

from typing import Any

from ..caging import gripper_caging_reward
from ..exact import distance, distance_xy, plus
from ..numerics import log
from ..scene import ObservedObject, Task, position, quaternion
from ..shaping import hamacher_product, tolerance

_TARGET_RADIUS = 0.05


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerPickOutOfHoleEnvV3`."""
    obj = s.obs[4:7]
    obj_to_target = distance(obj, s.target_pos)
    tcp_to_obj = distance(obj, s.tcp)

    # The floor is a funnel around the hole, above which the gripper should stay.
    radius = distance_xy(s.tcp, s.obj_init_pos)
    floor = 0.0 if radius <= 0.03 else 0.015 * log(radius - 0.03) + 0.15
    above_floor = 1.0
    if s.tcp[2] < floor:
        above_floor = tolerance(max(floor - s.tcp[2], 0.0), bounds=(0.0, 0.01), margin=0.02)

    object_grasped, single = gripper_caging_reward(
        s,
        obj,
        s.obj_init_pos,
        object_reach_radius=0.01,
        obj_radius=0.015,
        pad_success_thresh=0.02,
        xz_thresh=0.03,
        desired_gripper_effort=0.1,
        high_density=True,
    )
    in_place = tolerance(
        obj_to_target, bounds=(0.0, 0.02), margin=distance(s.obj_init_pos, s.target_pos)
    )
    reward = hamacher_product(object_grasped, in_place, single)

    lifted = obj[2] - 0.02 > s.obj_init_pos[2]
    grasp_success = tcp_to_obj < 0.04 and lifted and not s.obs[3] < 0.33
    if grasp_success:
        reward = plus(reward, 1.0 + 5.0 * hamacher_product(in_place, above_floor), single)
    if obj_to_target < _TARGET_RADIUS:
        reward = 10.0

    out.reward = reward
    out.success = obj_to_target <= 0.07
    out.near_object = tcp_to_obj <= 0.03
    out.grasp_success = grasp_success
    out.grasp_reward = object_grasped
    out.in_place_reward = in_place
    out.obj_to_target = obj_to_target


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("body", "obj"), quaternion("obj")),),
    constants=(
        "_target_pos",
        "obj_init_pos",
        "init_tcp",
    ),
)
