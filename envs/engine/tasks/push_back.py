"""push-back-v3: pull the puck back to the goal."""

from typing import Any

from ..caging import pinching_reward
from ..exact import distance
from ..scene import ObservedObject, Task, position, rotation_matrix
from ..shaping import hamacher_product, tolerance

_TARGET_RADIUS = 0.05
_OBJ_RADIUS = 0.007


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerPushBackEnvV3`."""
    obj = s.obs[4:7]
    tcp_opened = s.obs[3]
    tcp_to_obj = distance(obj, s.tcp)
    target_to_obj = distance(obj, s.target_pos)
    target_to_obj_init = distance(s.obj_init_pos, s.target_pos)
    in_place = tolerance(target_to_obj, bounds=(0.0, _TARGET_RADIUS), margin=target_to_obj_init)

    object_grasped = pinching_reward(s, obj, _OBJ_RADIUS, grip_margin=0.003, x_z_margin=0.01)
    reward = hamacher_product(object_grasped, in_place)
    pulled = target_to_obj_init - target_to_obj > 0.01
    if tcp_to_obj < 0.01 and 0 < tcp_opened < 0.55 and pulled:
        reward += 1.0 + 5.0 * in_place
    if target_to_obj < _TARGET_RADIUS:
        reward = 10.0

    out.reward = reward
    out.success = target_to_obj <= 0.07
    out.near_object = tcp_to_obj <= 0.03
    out.grasp_success = s.touching > 0 and tcp_opened > 0 and obj[2] - 0.02 > s.obj_init_pos[2]
    out.grasp_reward = object_grasped
    out.in_place_reward = in_place
    out.obj_to_target = target_to_obj


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
