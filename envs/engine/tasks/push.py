"""push-v3: push the puck to the goal."""

from typing import Any

from ..caging import gripper_caging_reward
from ..exact import distance, plus, times
from ..scene import ObservedObject, Task, position, rotation_matrix
from ..shaping import tolerance

_TARGET_RADIUS = 0.05


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerPushEnvV3`."""
    obj = s.obs[4:7]
    tcp_opened = s.obs[3]
    tcp_to_obj = distance(obj, s.tcp)
    target_to_obj = distance(obj, s.target_pos)

    in_place = tolerance(
        target_to_obj,
        bounds=(0.0, _TARGET_RADIUS),
        margin=distance(s.obj_init_pos, s.target_pos),
    )
    object_grasped, single = gripper_caging_reward(
        s,
        obj,
        s.obj_init_pos,
        object_reach_radius=0.01,
        obj_radius=0.015,
        pad_success_thresh=0.05,
        xz_thresh=0.005,
        high_density=True,
    )
    reward = times(2.0, object_grasped, single)
    if tcp_to_obj < 0.02 and tcp_opened > 0:
        bonus = plus(plus(1.0, reward, single), 5.0 * in_place, single)
        reward = plus(reward, bonus, single)
    if target_to_obj < _TARGET_RADIUS:
        reward = 10.0

    out.reward = reward
    out.success = target_to_obj <= _TARGET_RADIUS
    out.near_object = tcp_to_obj <= 0.03
    out.grasp_success = s.touching > 0 and tcp_opened > 0 and obj[2] - 0.02 > s.obj_init_pos[2]
    out.grasp_reward = object_grasped
    out.in_place_reward = in_place
    out.obj_to_target = target_to_obj


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("body", "obj"), rotation_matrix("geom", "objGeom")),),
    constants=("_target_pos", "obj_init_pos", "init_tcp"),
    touching="objGeom",
)
