"""reach-v3: move the gripper to the goal."""

from typing import Any

from ..exact import distance
from ..scene import ObservedObject, Task, position, rotation_matrix
from ..shaping import tolerance

_TARGET_RADIUS = 0.05


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerReachEnvV3`."""
    tcp_to_target = distance(s.tcp, s.target_pos)
    in_place = tolerance(
        tcp_to_target,
        bounds=(0.0, _TARGET_RADIUS),
        margin=distance(s.hand_init_pos, s.target_pos),
    )

    out.reward = 10 * in_place
    out.success = tcp_to_target <= 0.05
    out.near_object = tcp_to_target
    out.grasp_success = 1.0
    out.grasp_reward = tcp_to_target
    out.in_place_reward = in_place
    out.obj_to_target = tcp_to_target


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("body", "obj"), rotation_matrix("geom", "objGeom")),),
    constants=("_target_pos", "hand_init_pos"),
)
