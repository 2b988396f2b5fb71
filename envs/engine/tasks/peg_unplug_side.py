"""peg-unplug-side-v3: pull the peg out sideways."""

from typing import Any

from ..caging import gripper_caging_reward
from ..exact import distance, plus, times
from ..scene import ObservedObject, Task, position, quaternion
from ..shaping import tolerance


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerPegUnplugSideEnvV3`."""
    obj = s.obs[4:7]
    tcp_opened = s.obs[3]
    tcp_to_obj = distance(obj, s.tcp)
    obj_to_target = distance(obj, s.target_pos)

    object_grasped, single = gripper_caging_reward(
        s,
        obj,
        s.obj_init_pos,
        object_reach_radius=0.01,
        obj_radius=0.025,
        pad_success_thresh=0.05,
        xz_thresh=0.005,
        desired_gripper_effort=0.8,
        high_density=True,
    )
    in_place = tolerance(
        obj_to_target, bounds=(0.0, 0.05), margin=distance(s.obj_init_pos, s.target_pos)
    )
    grasp_success = tcp_opened > 0.5 and obj[0] - s.obj_init_pos[0] > 0.015

    reward = times(2.0, object_grasped, single)
    if grasp_success and tcp_to_obj < 0.035:
        reward = plus(plus(1.0, reward, single), 5.0 * in_place, single)
    if obj_to_target <= 0.05:
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
    objects=(ObservedObject(position("site", "pegEnd"), quaternion("plug1")),),
    constants=(
        "_target_pos",
        "obj_init_pos",
        "init_tcp",
    ),
)
