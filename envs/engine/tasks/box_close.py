"""box-close-v3: put the lid on the box."""

from typing import Any

import numpy as np

from ..compiler import kernel
from ..exact import Vector, distance, distance_xy, scaled_distance
from ..numerics import log, norm4
from ..scene import ObservedObject, Task, position, quaternion
from ..shaping import grab_effort, hamacher_product, tolerance


@kernel
def _reward_quat(obs: Vector) -> float:
    """How close the lid is to being upright."""
    error = norm4(obs[7] - 0.707, obs[8], obs[9], obs[10] - 0.707)
    return max(1.0 - error / 0.2, 0.0)


@kernel
def _reward_pos(obs: Vector, target_pos: Vector) -> tuple[float, float]:
    """How well the hand is placed at the lid's handle, and the lid on the box."""
    hand = obs[:3]
    lid = np.array([obs[4], obs[5], obs[6] + 0.02])

    # The floor is a funnel centred on the handle, above which the hand should come near.
    threshold = 0.02
    radius = distance_xy(hand, lid)
    floor = 0.0 if radius <= threshold else 0.04 * log(radius - threshold) + 0.4
    above_floor = 1.0
    if hand[2] < floor:
        above_floor = tolerance(floor - hand[2], bounds=(0.0, 0.01), margin=floor / 2.0)
    in_place = tolerance(distance(hand, lid), bounds=(0.0, 0.02), margin=0.5)
    ready_to_lift = hamacher_product(above_floor, in_place)

    error = scaled_distance(target_pos, lid, (1.0, 1.0, 3.0))
    trying = 0.2 if lid[2] > 0.04 else 0.0
    return ready_to_lift, trying + 0.8 * tolerance(error, bounds=(0.0, 0.05), margin=0.25)


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerBoxCloseEnvV3`."""
    reward_grab = grab_effort(s.action[3])
    ready_to_lift, lifted = _reward_pos(s.obs, s.target_pos)

    reward = 2.0 * hamacher_product(reward_grab, ready_to_lift) + 8.0 * lifted
    success = distance(s.obs[4:7], s.target_pos) < 0.08
    if success:
        reward = 10.0
    # A lid that is not upright spoils everything, lest it be kicked onto the box.
    reward *= _reward_quat(s.obs)

    out.reward = reward
    out.success = success
    out.near_object = ready_to_lift
    out.grasp_success = reward_grab >= 0.5
    out.grasp_reward = reward_grab
    out.in_place_reward = lifted
    out.obj_to_target = 0.0


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("body", "top_link"), quaternion("top_link")),),
    constants=("_target_pos",),
)
