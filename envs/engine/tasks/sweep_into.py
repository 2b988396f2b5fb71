"""sweep-into-v3: sweep the puck into the hole."""

from typing import Any

import numpy as np

from ..caging import pinching_reward
from ..exact import distance
from ..scene import ObservedObject, Task, position, rotation_matrix
from ..shaping import hamacher_product, tolerance

_TARGET_RADIUS = 0.05
_OBJ_RADIUS = 0.02


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerSweepIntoGoalEnvV3`."""
    obj = s.obs[4:7]
    target = np.array([s.target_pos[0], s.target_pos[1], obj[2]])
    obj_to_target = distance(obj, target)
    tcp_to_obj = distance(obj, s.tcp)
    in_place = tolerance(
        obj_to_target, bounds=(0.0, _TARGET_RADIUS), margin=distance(s.obj_init_pos, target)
    )

    object_grasped = pinching_reward(s, obj, _OBJ_RADIUS, grip_margin=0.005, x_z_margin=0.01)
    reward = 2.0 * object_grasped + 6.0 * hamacher_product(object_grasped, in_place)
    if obj_to_target < _TARGET_RADIUS:
        reward = 10.0

    out.reward = reward
    out.success = obj_to_target <= 0.05
    out.near_object = tcp_to_obj <= 0.03
    out.grasp_success = s.touching > 0 and s.obs[3] > 0
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
