"""faucet-open-v3: turn the faucet counter-clockwise."""

from typing import Any

import numpy as np

from ..exact import distance
from ..scene import ObservedObject, Task, position, quaternion
from ..shaping import GAUSSIAN, tolerance

_TARGET_RADIUS = 0.07
_FAUCET_REACH_RADIUS = 0.01


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerFaucetOpenEnvV3`."""
    obj = np.array([s.obs[4] - 0.04, s.obs[5] + 0.0, s.obs[6] + 0.03])
    target_to_obj = distance(obj, s.target_pos)
    in_place = tolerance(
        target_to_obj,
        bounds=(0.0, _TARGET_RADIUS),
        margin=abs(distance(s.obj_init_pos, s.target_pos) - _TARGET_RADIUS),
    )

    tcp_to_obj = distance(obj, s.tcp)
    reach = tolerance(
        tcp_to_obj,
        bounds=(0.0, _FAUCET_REACH_RADIUS),
        margin=abs(distance(s.obj_init_pos, s.init_tcp) - _FAUCET_REACH_RADIUS),
        sigmoid=GAUSSIAN,
    )
    reward = (2.0 * reach + 3.0 * in_place) * 2.0
    if target_to_obj <= _TARGET_RADIUS:
        reward = 10.0

    out.reward = reward
    out.success = target_to_obj <= 0.07
    out.near_object = tcp_to_obj <= 0.01
    out.grasp_success = 1.0
    out.grasp_reward = reach
    out.in_place_reward = in_place
    out.obj_to_target = target_to_obj


TASK = Task(
    evaluate=evaluate,
    objects=(
        ObservedObject(
            position("site", "handleStartOpen"), quaternion("faucetBase"), offset=(0.0, 0.0, -0.01)
        ),
    ),
    constants=("_target_pos", "obj_init_pos", "init_tcp"),
)
