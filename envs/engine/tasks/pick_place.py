"""pick-place-v3: lift the puck to the goal."""

from typing import Any

from ..caging import gripper_closed, pads_around, x_z_caging
from ..compiler import kernel
from ..exact import Vector, distance, mean, plus
from ..scene import ObservedObject, Task, position, rotation_matrix
from ..shaping import hamacher_product, tolerance

_TARGET_RADIUS = 0.05


@kernel
def _gripper_caging_reward(s: Any, obj_pos: Vector) -> tuple[float, bool]:
    caging = hamacher_product(pads_around(s, obj_pos, 0.015, 0.05), x_z_caging(s, obj_pos, 0.005))
    gripping, single = gripper_closed(s.action[3], 1.0)
    if not caging > 0.97:
        gripping, single = 0.0, False
    return mean(hamacher_product(caging, gripping, single), caging, single), single


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerPickPlaceEnvV3`."""
    obj = s.obs[4:7]
    tcp_opened = s.obs[3]
    obj_to_target = distance(obj, s.target_pos)
    tcp_to_obj = distance(obj, s.tcp)

    in_place = tolerance(
        obj_to_target,
        bounds=(0.0, _TARGET_RADIUS),
        margin=distance(s.obj_init_pos, s.target_pos),
    )
    object_grasped, single = _gripper_caging_reward(s, obj)
    reward = hamacher_product(object_grasped, in_place, single)

    if tcp_to_obj < 0.02 and tcp_opened > 0 and obj[2] - 0.01 > s.obj_init_pos[2]:
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
    constants=("_target_pos", "obj_init_pos", "init_tcp"),
    touching="objGeom",
)
