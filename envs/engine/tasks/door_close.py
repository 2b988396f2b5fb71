"""door-close-v3: push the door shut."""

from typing import Any

from ..exact import distance
from ..scene import ObservedObject, Task, position, rotation_matrix
from ..shaping import GAUSSIAN, tolerance

_TARGET_RADIUS = 0.05


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerDoorCloseEnvV3`."""
    obj = s.obs[4:7]
    tcp_to_target = distance(s.tcp, s.target_pos)
    obj_to_target = distance(obj, s.target_pos)

    in_place = tolerance(
        obj_to_target,
        bounds=(0.0, _TARGET_RADIUS),
        margin=distance(s.obj_init_pos, s.target_pos),
        sigmoid=GAUSSIAN,
    )
    hand_in_place = tolerance(
        tcp_to_target,
        bounds=(0.0, 0.25 * _TARGET_RADIUS),
        margin=distance(s.hand_init_pos, obj) + 0.1,
        sigmoid=GAUSSIAN,
    )
    reward = 3.0 * hand_in_place + 6.0 * in_place
    if obj_to_target < _TARGET_RADIUS:
        reward = 10.0

    out.reward = reward
    out.success = obj_to_target <= 0.08
    out.near_object = 0.0
    out.grasp_success = 1.0
    out.grasp_reward = 1.0
    out.in_place_reward = hand_in_place
    out.obj_to_target = obj_to_target


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("geom", "handle"), rotation_matrix("geom", "handle")),),
    constants=(
        "_target_pos",
        "obj_init_pos",
        "hand_init_pos",
    ),
)
