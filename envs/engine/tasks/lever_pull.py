"""lever-pull-v3: pull the lever upright."""

from typing import Any

import numpy as np

from ..exact import distance
from ..numerics import norm
from ..scene import ObservedObject, Task, joint_position, position, rotation_matrix
from ..shaping import hamacher_product, tolerance


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerLeverPullEnvV3`."""
    gripper = s.obs[:3]
    lever = s.obs[4:7]
    # The lever is lifted by the gripper's shoulder, not by its fingers.
    shoulder_to_lever = norm(
        (gripper[0] + 0.0 - lever[0]) * 4.0,
        gripper[1] + 0.055 - lever[1],
        (gripper[2] + 0.07 - lever[2]) * 4.0,
    )
    shoulder_to_lever_init = norm(
        (s.init_tcp[0] + 0.0 - s.lever_pos_init[0]) * 4.0,
        s.init_tcp[1] + 0.055 - s.lever_pos_init[1],
        (s.init_tcp[2] + 0.07 - s.lever_pos_init[2]) * 4.0,
    )
    ready_to_lift = tolerance(shoulder_to_lever, bounds=(0.0, 0.02), margin=shoulder_to_lever_init)

    lever_error = abs(-s.lever_angle[0] - np.pi / 2.0)
    lever_engagement = tolerance(
        lever_error, bounds=(0.0, np.pi / 48.0), margin=(np.pi / 2.0) - (np.pi / 12.0)
    )
    in_place = tolerance(
        distance(lever, s.target_pos),
        bounds=(0.0, 0.04),
        margin=distance(s.lever_pos_init, s.target_pos),
    )

    out.reward = 10.0 * hamacher_product(ready_to_lift, in_place)
    out.success = lever_error <= np.pi / 24
    out.near_object = shoulder_to_lever < 0.03
    out.grasp_success = ready_to_lift > 0.9
    out.grasp_reward = ready_to_lift
    out.in_place_reward = lever_engagement
    out.obj_to_target = shoulder_to_lever


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("site", "leverStart"), rotation_matrix("geom", "objGeom")),),
    constants=(
        "_target_pos",
        "init_tcp",
        "_lever_pos_init",
    ),
    live={"lever_angle": joint_position("LeverAxis")},
)
