"""drawer-open-v3: pull the drawer open by its handle."""

from typing import Any

from ..exact import distance, scaled_distance
from ..numerics import norm
from ..scene import ObservedObject, Task, position, quaternion
from ..shaping import tolerance


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerDrawerOpenEnvV3`."""
    gripper = s.obs[:3]
    handle = s.obs[4:7]
    handle_error = distance(handle, s.target_pos)

    reward_for_opening = tolerance(handle_error, bounds=(0.0, 0.02), margin=s.maxDist)

    # Errors in x and y weigh more, so that the gripper comes down on the handle from above.
    scale = (3.0, 3.0, 1.0)
    gripper_error_init = norm(
        (s.target_pos[0] - s.init_tcp[0]) * scale[0],
        (s.target_pos[1] + s.maxDist - s.init_tcp[1]) * scale[1],
        (s.target_pos[2] - s.init_tcp[2]) * scale[2],
    )
    reward_for_caging = tolerance(
        scaled_distance(handle, gripper, scale), bounds=(0.0, 0.01), margin=gripper_error_init
    )

    out.reward = (reward_for_caging + reward_for_opening) * 5.0
    out.success = handle_error <= 0.03
    out.near_object = distance(handle, gripper) <= 0.03
    out.grasp_success = s.obs[3] > 0
    out.grasp_reward = reward_for_caging
    out.in_place_reward = reward_for_opening
    out.obj_to_target = handle_error


TASK = Task(
    evaluate=evaluate,
    objects=(
        ObservedObject(
            position("body", "drawer_link"), quaternion("drawer_link"), offset=(0.0, -0.16, 0.0)
        ),
    ),
    constants=("_target_pos", "init_tcp", "maxDist"),
)
