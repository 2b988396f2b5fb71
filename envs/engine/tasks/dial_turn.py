"""dial-turn-v3: turn the dial."""

from typing import Any

import numpy as np

from ..caging import gripper_closed
from ..exact import distance, times
from ..scene import ObservedObject, Task, joint_position, position, quaternion
from ..shaping import GAUSSIAN, hamacher_product, tolerance

_TARGET_RADIUS = 0.07
_DIAL_REACH_RADIUS = 0.005


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerDialTurnEnvV3`."""
    obj = s.obs[4:7]
    dial_push_position = np.array([obj[0] + 0.05, obj[1] + 0.02, obj[2] + 0.09])
    target_to_obj = distance(obj, s.target_pos)
    in_place = tolerance(
        target_to_obj,
        bounds=(0.0, _TARGET_RADIUS),
        margin=abs(distance(s.dial_push_position, s.target_pos) - _TARGET_RADIUS),
    )

    tcp_to_obj = distance(dial_push_position, s.tcp)
    reach = tolerance(
        tcp_to_obj,
        bounds=(0.0, _DIAL_REACH_RADIUS),
        margin=abs(distance(s.dial_push_position, s.init_tcp) - _DIAL_REACH_RADIUS),
        sigmoid=GAUSSIAN,
    )
    closed, single = gripper_closed(s.action[3], 1.0)
    reach = hamacher_product(reach, closed, single)

    out.reward = times(10.0, hamacher_product(reach, in_place, single), single)
    out.success = target_to_obj <= _TARGET_RADIUS
    out.near_object = tcp_to_obj <= 0.01
    out.grasp_success = 1.0
    out.grasp_reward = reach
    out.in_place_reward = in_place
    out.obj_to_target = target_to_obj


TASK = Task(
    evaluate=evaluate,
    objects=(
        ObservedObject(
            position("body", "dial"),
            quaternion("dial"),
            dial=(joint_position("knob_Joint_1"), 0.05),
        ),
    ),
    constants=("_target_pos", "init_tcp", "dial_push_position"),
)
