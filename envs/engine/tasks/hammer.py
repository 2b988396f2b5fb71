"""hammer-v3: pick up the hammer and drive the nail in."""

from typing import Any

from ..caging import gripper_caging_reward
from ..compiler import kernel
from ..exact import Vector, plus, times
from ..numerics import norm, norm4
from ..scene import ObservedObject, Task, joint_position, position, quaternion
from ..shaping import tolerance

_HAMMER_HANDLE_LENGTH = 0.14


@kernel
def _reward_quat(obs: Vector) -> float:
    """How close the hammer is to lying flat."""
    error = norm4(obs[7] - 1.0, obs[8], obs[9], obs[10])
    return max(1.0 - error / 0.4, 0.0)


@kernel
def _reward_pos(hammer: Vector, target_pos: Vector) -> float:
    """How close the hammer's head is to the nail's goal."""
    head_x, head_y, head_z = hammer[0] + 0.16, hammer[1] + 0.06, hammer[2] + 0.0
    error = norm(target_pos[0] - head_x, target_pos[1] - head_y, target_pos[2] - head_z)
    lifted = 0.1 if head_z > 0.02 else 0.0
    return lifted + 0.9 * tolerance(error, bounds=(0.0, 0.02), margin=0.2)


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerHammerEnvV3`."""
    hammer = s.obs[4:7].copy()
    # The handle is no sphere: within its length it counts as being where the hand is.
    if abs(hammer[0] - s.obs[0]) < _HAMMER_HANDLE_LENGTH / 2.0:
        hammer[0] = s.obs[0]

    reward_quat = _reward_quat(s.obs)
    reward_grab, single = gripper_caging_reward(
        s,
        hammer,
        s.obj_init_pos,
        object_reach_radius=0.01,
        obj_radius=0.015,
        pad_success_thresh=0.02,
        xz_thresh=0.01,
        high_density=True,
    )
    reward_in_place = _reward_pos(s.obs[4:7], s.target_pos)

    weighted = plus(times(2.0, reward_grab, single), 6.0 * reward_in_place, single)
    reward = times(weighted, reward_quat, single)
    # A nail that moved without the hammer is not rewarded.
    success = s.nail[0] > 0.09
    if success and reward > 5.0:
        reward = 10.0

    out.reward = reward
    out.success = success
    out.near_object = reward_quat
    out.grasp_success = reward_grab >= 0.5
    out.grasp_reward = reward_grab
    out.in_place_reward = reward_in_place
    out.obj_to_target = 0.0


TASK = Task(
    evaluate=evaluate,
    objects=(
        ObservedObject(position("body", "hammer"), quaternion("hammer")),
        ObservedObject(position("body", "nail_link"), quaternion("nail_link")),
    ),
    constants=("_target_pos", "obj_init_pos", "init_tcp"),
    live={"nail": joint_position("NailSlideJoint")},
)
