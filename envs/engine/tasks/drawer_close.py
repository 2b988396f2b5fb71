"""drawer-close-v3: push the drawer shut."""

from typing import Any

from ..caging import gripper_closed
from ..exact import distance, times
from ..scene import ObservedObject, Task, position
from ..shaping import GAUSSIAN, hamacher_product, tolerance

_TARGET_RADIUS = 0.05
_HANDLE_REACH_RADIUS = 0.005


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerDrawerCloseEnvV3`."""
    obj = s.obs[4:7]
    target_to_obj = distance(obj, s.target_pos)
    in_place = tolerance(
        target_to_obj,
        bounds=(0.0, _TARGET_RADIUS),
        margin=abs(distance(s.obj_init_pos, s.target_pos) - _TARGET_RADIUS),
    )

    tcp_to_obj = distance(obj, s.tcp)
    reach = tolerance(
        tcp_to_obj,
        bounds=(0.0, _HANDLE_REACH_RADIUS),
        margin=abs(distance(s.obj_init_pos, s.init_tcp) - _HANDLE_REACH_RADIUS),
        sigmoid=GAUSSIAN,
    )
    closed, single = gripper_closed(s.action[3], 1.0)
    reach = hamacher_product(reach, closed, single)

    reward = times(hamacher_product(reach, in_place, single), 10.0, single)
    if target_to_obj <= _TARGET_RADIUS + 0.015:
        reward = 10.0

    out.reward = reward
    out.success = target_to_obj <= _TARGET_RADIUS + 0.015
    out.near_object = tcp_to_obj <= 0.01
    out.grasp_success = 1.0
    out.grasp_reward = reach
    out.in_place_reward = in_place
    out.obj_to_target = target_to_obj


TASK = Task(
    evaluate=evaluate,
    objects=(
        ObservedObject(
            position("body", "drawer_link"), (0.0, 0.0, 0.0, 0.0), offset=(0.0, -0.16, 0.05)
        ),
    ),
    constants=("_target_pos", "obj_init_pos", "init_tcp"),
)
