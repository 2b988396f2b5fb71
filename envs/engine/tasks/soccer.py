"""soccer-v3: kick the ball into the goal."""

from typing import Any

from ..caging import pinching_reward
from ..exact import distance, scaled_distance
from ..scene import ObservedObject, Task, position, rotation_matrix
from ..shaping import tolerance

_TARGET_RADIUS = 0.07
_OBJ_RADIUS = 0.013


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerSoccerEnvV3`."""
    obj = s.obs[4:7]
    tcp_opened = s.obs[3]
    scale = (3.0, 1.0, 1.0)
    tcp_to_obj = distance(obj, s.tcp)
    target_to_obj = scaled_distance(obj, s.target_pos, scale)
    in_place = tolerance(
        target_to_obj,
        bounds=(0.0, _TARGET_RADIUS),
        margin=scaled_distance(obj, s.obj_init_pos, scale),
    )
    goal_line = s.target_pos[1] - 0.1
    if obj[1] > goal_line and abs(obj[0] - s.target_pos[0]) > 0.10:
        missed = 2.0 * ((obj[1] - goal_line) / (1.0 - goal_line))
        in_place = min(max(in_place - missed, 0.0), 1.0)

    object_grasped = pinching_reward(s, obj, _OBJ_RADIUS, grip_margin=0.01, x_z_margin=0.005)
    reward = 3.0 * object_grasped + 6.5 * in_place
    if target_to_obj < _TARGET_RADIUS:
        reward = 10.0

    obj_to_target = distance(obj, s.target_pos)
    out.reward = reward
    out.success = obj_to_target <= 0.07
    out.near_object = tcp_to_obj <= 0.03
    out.grasp_success = s.touching > 0 and tcp_opened > 0 and obj[2] - 0.02 > s.obj_init_pos[2]
    out.grasp_reward = object_grasped
    out.in_place_reward = in_place
    out.obj_to_target = obj_to_target


TASK = Task(
    evaluate=evaluate,
    objects=(
        ObservedObject(position("body", "soccer_ball"), rotation_matrix("body", "soccer_ball")),
    ),
    constants=(
        "_target_pos",
        "obj_init_pos",
        "init_tcp",
    ),
    touching="objGeom",
)
