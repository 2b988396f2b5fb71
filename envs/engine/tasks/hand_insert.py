"""hand-insert-v3: push the block into the hole."""

from typing import Any

from ..caging import gripper_caging_reward
from ..exact import distance, plus
from ..scene import ObservedObject, Task, position, quaternion
from ..shaping import hamacher_product, tolerance

_TARGET_RADIUS = 0.05


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerHandInsertEnvV3`."""
    obj = s.obs[4:7]
    tcp_opened = s.obs[3]
    obj_to_target = distance(obj, s.target_pos)
    in_place = tolerance(
        obj_to_target,
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
    reward = hamacher_product(object_grasped, in_place, single)
    tcp_to_obj = distance(obj, s.tcp)
    if tcp_to_obj < 0.02 and tcp_opened > 0:
        reward = plus(reward, 1.0 + 7.0 * in_place, single)
    if obj_to_target < _TARGET_RADIUS:
        reward = 10.0

    out.reward = reward
    out.success = obj_to_target <= 0.05
    out.near_object = tcp_to_obj <= 0.03
    out.grasp_success = s.touching > 0 and tcp_opened > 0 and obj[2] - 0.02 > s.obj_init_pos[2]
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
    touching="objGeom",
)
