"""shelf-place-v3: put the puck on the shelf."""

from typing import Any

from ..caging import gripper_caging_reward
from ..exact import distance, plus
from ..scene import ObservedObject, Task, position, rotation_matrix
from ..shaping import hamacher_product, tolerance

_TARGET_RADIUS = 0.05


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerShelfPlaceEnvV3`."""
    obj = s.obs[4:7]
    tcp_opened = s.obs[3]
    target = s.target_pos
    obj_to_target = distance(obj, target)
    tcp_to_obj = distance(obj, s.tcp)
    in_place = tolerance(
        obj_to_target, bounds=(0.0, _TARGET_RADIUS), margin=distance(s.obj_init_pos, target)
    )
    object_grasped, single = gripper_caging_reward(
        s,
        obj,
        s.obj_init_pos,
        obj_radius=0.02,
        pad_success_thresh=0.05,
        object_reach_radius=0.01,
        xz_thresh=0.01,
    )
    reward = hamacher_product(object_grasped, in_place, single)

    below_shelf = 0.0 < obj[2] < 0.24 and target[0] - 0.15 < obj[0] < target[0] + 0.15
    if below_shelf and target[1] - 3 * _TARGET_RADIUS < obj[1] < target[1]:
        z_scaling = (0.24 - obj[2]) / 0.24
        y_scaling = (obj[1] - (target[1] - 3 * _TARGET_RADIUS)) / (3 * _TARGET_RADIUS)
        bound_loss = hamacher_product(y_scaling, z_scaling)
        in_place = min(max(in_place - bound_loss, 0.0), 1.0)
        single = False  # now `in_place` is a NumPy float64, which does not give way to float32
    if below_shelf and obj[1] > target[1]:
        in_place = 0.0

    if tcp_to_obj < 0.025 and tcp_opened > 0 and obj[2] - 0.01 > s.obj_init_pos[2]:
        reward = plus(reward, 1.0 + 5.0 * in_place, single)
    if obj_to_target < _TARGET_RADIUS:
        reward = 10.0

    out.reward = reward
    out.success = obj_to_target <= 0.07
    out.near_object = tcp_to_obj <= 0.03
    out.grasp_success = s.touching > 0 and tcp_opened > 0 and obj[2] - 0.02 > s.obj_init_pos[2]
    out.grasp_reward = object_grasped
    out.in_place_reward = in_place
    out.obj_to_target = obj_to_target


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("body", "obj"), rotation_matrix("geom", "objGeom")),),
    constants=(
        "_target_pos",
        "obj_init_pos",
        "init_tcp",
    ),
    touching="objGeom",
)
