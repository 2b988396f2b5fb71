"""plate-slide-v3: slide the plate into the cabinet."""

from typing import Any

from ..exact import distance
from ..scene import ObservedObject, Task, position, rotation_matrix
from ..shaping import hamacher_product, tolerance

_TARGET_RADIUS = 0.05


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerPlateSlideEnvV3`."""
    obj = s.obs[4:7]
    obj_to_target = distance(obj, s.target_pos)
    in_place = tolerance(
        obj_to_target,
        bounds=(0.0, _TARGET_RADIUS),
        margin=distance(s.obj_init_pos, s.target_pos),
    )
    tcp_to_obj = distance(s.tcp, obj)
    object_grasped = tolerance(
        tcp_to_obj, bounds=(0.0, _TARGET_RADIUS), margin=distance(s.init_tcp, s.obj_init_pos)
    )
    reward = 8.0 * hamacher_product(object_grasped, in_place)
    if obj_to_target < _TARGET_RADIUS:
        reward = 10.0

    out.reward = reward
    out.success = obj_to_target <= 0.07
    out.near_object = tcp_to_obj <= 0.03
    out.grasp_success = 0.0
    out.grasp_reward = object_grasped
    out.in_place_reward = in_place
    out.obj_to_target = obj_to_target


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("geom", "puck"), rotation_matrix("geom", "puck")),),
    constants=(
        "_target_pos",
        "obj_init_pos",
        "init_tcp",
    ),
)
