"""door-open-v3: pull the door open by its handle."""

from typing import Any

import numpy as np

from ..compiler import kernel
from ..exact import Vector
from ..numerics import log, norm, norm2
from ..scene import ObservedObject, Task, joint_position, position, rotation_matrix
from ..shaping import grab_effort, hamacher_product, tolerance


@kernel
def _reward_pos(obs: Vector, theta: float) -> tuple[float, float]:
    """How well the hand is placed at the handle, and how far the door is open."""
    hand_x, hand_y, hand_z = obs[0], obs[1], obs[2]
    door_x, door_y, door_z = obs[4] - 0.05, obs[5], obs[6]

    threshold = 0.12
    # The floor is a funnel centred on the handle, above which the hand should come near.
    radius = norm2(hand_x - door_x, hand_y - door_y)
    floor = 0.0 if radius <= threshold else 0.04 * log(radius - threshold) + 0.4
    above_floor = 1.0
    if hand_z < floor:
        above_floor = tolerance(floor - hand_z, bounds=(0.0, 0.01), margin=floor / 2.0)

    in_place = tolerance(
        norm(hand_x - door_x - 0.05, hand_y - door_y - 0.03, hand_z - door_z - -0.01),
        bounds=(0.0, threshold / 2.0),
        margin=0.5,
    )
    ready_to_open = hamacher_product(above_floor, in_place)

    door_angle = -theta
    trying = 0.2 if theta < -np.pi / 90.0 else 0.0
    opened = trying + 0.8 * tolerance(
        np.pi / 2.0 + np.pi / 6 - door_angle, bounds=(0.0, 0.5), margin=np.pi / 3.0
    )
    return ready_to_open, opened


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerDoorEnvV3`."""
    reward_grab = grab_effort(s.action[3])
    ready_to_open, opened = _reward_pos(s.obs, s.door_angle[0])

    reward = 2.0 * hamacher_product(ready_to_open, reward_grab) + 8.0 * opened
    success = abs(s.obs[4] - s.target_pos[0]) <= 0.08
    if success:
        reward = 10.0

    out.reward = reward
    out.success = success
    out.near_object = ready_to_open
    out.grasp_success = reward_grab >= 0.5
    out.grasp_reward = reward_grab
    out.in_place_reward = opened
    out.obj_to_target = 0.0


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("geom", "handle"), rotation_matrix("geom", "handle")),),
    constants=("_target_pos",),
    live={"door_angle": joint_position("doorjoint")},
)
