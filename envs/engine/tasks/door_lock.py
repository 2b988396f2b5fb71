"""door-lock-v3: lock the door by turning the lock."""

from typing import Any

from ..exact import scaled_distance
from ..scene import ObservedObject, Task, position, quaternion
from ..shaping import hamacher_product, tolerance

_LOCK_LENGTH = 0.1


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerDoorLockEnvV3`."""
    obj = s.obs[4:7]
    tcp_to_obj = scaled_distance(obj, s.left_pad, (0.25, 1.0, 0.5))
    obj_to_target = abs(s.target_pos[2] - obj[2])

    tcp_opened = max(s.obs[3], 0.0)
    # `init_left_pad`, from which the official margin is measured, is a view of the current pad.
    near_lock = tolerance(tcp_to_obj, bounds=(0.0, 0.01), margin=tcp_to_obj)
    lock_pressed = tolerance(obj_to_target, bounds=(0.0, 0.005), margin=_LOCK_LENGTH)

    out.reward = 2.0 * hamacher_product(tcp_opened, near_lock) + 8.0 * lock_pressed
    out.success = obj_to_target <= 0.02
    out.near_object = tcp_to_obj <= 0.05
    out.grasp_success = s.obs[3] > 0
    out.grasp_reward = near_lock
    out.in_place_reward = lock_pressed
    out.obj_to_target = obj_to_target


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("site", "lockStartLock"), quaternion("door_link")),),
    constants=("_target_pos",),
)
