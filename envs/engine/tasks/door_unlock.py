"""door-unlock-v3: unlock the door by turning the lock."""

from typing import Any

from ..numerics import norm
from ..scene import ObservedObject, Task, position, quaternion
from ..shaping import tolerance

_LOCK_LENGTH = 0.1


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerDoorUnlockEnvV3`."""
    gripper = s.obs[:3]
    lock = s.obs[4:7]
    # The lock is pushed by the gripper's shoulder, not by its fingers.
    shoulder_to_lock = norm(
        (gripper[0] + 0.0 - lock[0]) * 0.25,
        gripper[1] + 0.055 - lock[1],
        (gripper[2] + 0.07 - lock[2]) * 0.5,
    )
    shoulder_to_lock_init = norm(
        (s.init_tcp[0] + 0.0 - s.obj_init_pos[0]) * 0.25,
        s.init_tcp[1] + 0.055 - s.obj_init_pos[1],
        (s.init_tcp[2] + 0.07 - s.obj_init_pos[2]) * 0.5,
    )
    ready_to_push = tolerance(shoulder_to_lock, bounds=(0.0, 0.02), margin=shoulder_to_lock_init)
    obj_to_target = abs(s.target_pos[0] - lock[0])
    pushed = tolerance(obj_to_target, bounds=(0.0, 0.005), margin=_LOCK_LENGTH)

    out.reward = 2.0 * ready_to_push + 8.0 * pushed
    out.success = obj_to_target <= 0.02
    out.near_object = shoulder_to_lock <= 0.05
    out.grasp_success = s.obs[3] > 0
    out.grasp_reward = ready_to_push
    out.in_place_reward = pushed
    out.obj_to_target = obj_to_target


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("site", "lockStartUnlock"), quaternion("door_link")),),
    constants=(
        "_target_pos",
        "init_tcp",
    ),
    live={"obj_init_pos": position("body", "lock_link")},
)
