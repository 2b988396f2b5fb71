"""assembly-v3: pick up the nut and put it on the peg."""

from typing import Any

from ..caging import gripper_caging_reward
from ..compiler import kernel
from ..exact import Vector, plus, times
from ..numerics import log, norm, norm2, norm4
from ..scene import ObservedObject, Task, position, quaternion
from ..shaping import tolerance

_WRENCH_HANDLE_LENGTH = 0.02


@kernel
def _reward_quat(obs: Vector) -> float:
    """How close the wrench is to lying flat."""
    error = norm4(obs[7] - 0.707, obs[8], obs[9], obs[10] - 0.707)
    return max(1.0 - error / 0.4, 0.0)


@kernel
def _reward_pos(wrench_center: Vector, target_pos: Vector) -> tuple[float, bool]:
    """How close the wrench is to being on the peg, and whether it is."""
    error_x, error_y = target_pos[0] - wrench_center[0], target_pos[1] - wrench_center[1]
    radius = norm2(error_x, error_y)
    success = radius < 0.02 and target_pos[2] - wrench_center[2] > 0.0

    # The target height is a funnel around the peg, wider once the wrench is on it.
    threshold = 0.02 if success else 0.01
    target_height = 0.0
    if radius > threshold:
        target_height = 0.02 * log(radius - threshold) + 0.2
    error = norm(error_x * 1.0, error_y * 1.0, (target_height - wrench_center[2]) * 3.0)

    lifted = 0.1 if wrench_center[2] > 0.02 or radius < threshold else 0.0
    return lifted + 0.9 * tolerance(error, bounds=(0.0, 0.02), margin=0.4), success


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerNutAssemblyEnvV3`."""
    wrench = s.obs[4:7].copy()
    # The handle is no sphere: within its length it counts as being where the hand is.
    if abs(wrench[0] - s.obs[0]) < _WRENCH_HANDLE_LENGTH / 2.0:
        wrench[0] = s.obs[0]

    reward_quat = _reward_quat(s.obs)
    reward_grab, single = gripper_caging_reward(
        s,
        wrench,
        s.obj_init_pos,
        object_reach_radius=0.01,
        obj_radius=0.015,
        pad_success_thresh=0.02,
        xz_thresh=0.01,
        medium_density=True,
    )
    reward_in_place, success = _reward_pos(s.wrench_center, s.target_pos)

    weighted = plus(times(2.0, reward_grab, single), 6.0 * reward_in_place, single)
    reward = 10.0 if success else times(weighted, reward_quat, single)

    out.reward = reward
    out.success = success
    out.near_object = reward_quat
    out.grasp_success = reward_grab >= 0.5
    out.grasp_reward = reward_grab
    out.in_place_reward = reward_in_place
    out.obj_to_target = 0.0


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("site", "RoundNut-8"), quaternion("RoundNut")),),
    constants=(
        "_target_pos",
        "obj_init_pos",
        "init_tcp",
    ),
    live={"wrench_center": position("site", "RoundNut")},
)
