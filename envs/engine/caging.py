"""The rewards for closing the gripper around an object, in their official variants."""

from typing import Any

from .compiler import kernel
from .exact import Vector, distance, distance_xz, mean, rounded
from .numerics import norm
from .shaping import hamacher_product, tolerance


@kernel
def gripper_closed(effort: float, desired: float) -> tuple[float, bool]:
    """`min(max(0, effort), desired) / desired`, and whether the result is float32.

    It is float32 exactly if `effort` (a float32) is the value that min and max select.
    """
    if effort <= 0.0:
        return 0.0, False
    if rounded(desired, True) < effort:
        return 1.0, False
    return rounded(effort / rounded(desired, True), True), True


@kernel
def gripper_caging_reward(
    s: Any,
    obj_pos: Vector,
    obj_init_pos: Vector,
    obj_radius: float,
    pad_success_thresh: float,
    object_reach_radius: float,
    xz_thresh: float,
    desired_gripper_effort: float = 1.0,
    high_density: bool = False,
    medium_density: bool = False,
) -> tuple[float, bool]:
    """`SawyerXYZEnv._gripper_caging_reward`, and whether its value is float32.

    Args:
        s: The scene; needs `init_tcp`.
        obj_pos: (3,) the object.
        obj_init_pos: (3,) where it was at the episode's start.
        obj_radius: of the object's bounding sphere.
        pad_success_thresh: Distance of the pads to the object that counts as caged.
        object_reach_radius: Distance of the gripper's centre to the object that counts as reached.
        xz_thresh: Distance in the x-z plane that counts as caged.
        desired_gripper_effort: Effort that counts as closed.
        high_density: Average with the caging reward.
        medium_density: Average with a reaching reward.
    """
    caging_left = _pad_caging(s.left_pad, obj_pos, obj_init_pos, obj_radius, pad_success_thresh)
    caging_right = _pad_caging(s.right_pad, obj_pos, obj_init_pos, obj_radius, pad_success_thresh)
    caging_y = hamacher_product(caging_left, caging_right)

    caging_xz = tolerance(
        distance_xz(s.tcp, obj_pos),
        bounds=(0.0, xz_thresh),
        margin=distance_xz(obj_init_pos, s.init_tcp) - xz_thresh,
    )
    caging = hamacher_product(caging_y, caging_xz)

    gripping, single = gripper_closed(s.action[3], desired_gripper_effort)
    if not caging > 0.97:
        gripping, single = 0.0, False
    caging_and_gripping = hamacher_product(caging, gripping, single)

    if high_density:
        return mean(caging_and_gripping, caging, single), single
    if medium_density:
        reach = tolerance(
            distance(obj_pos, s.tcp),
            bounds=(0.0, object_reach_radius),
            margin=abs(distance(obj_init_pos, s.init_tcp) - object_reach_radius),
        )
        return mean(caging_and_gripping, reach, single), single
    return caging_and_gripping, single


@kernel
def _pad_caging(
    pad: Vector,
    obj_pos: Vector,
    obj_init_pos: Vector,
    obj_radius: float,
    pad_success_thresh: float,
) -> float:
    pad_to_obj = abs(pad[1] - obj_pos[1])
    pad_to_objinit = abs(pad[1] - obj_init_pos[1])
    return tolerance(
        pad_to_obj,
        bounds=(obj_radius, pad_success_thresh),
        margin=abs(pad_to_objinit - pad_success_thresh),
    )


@kernel
def pinching_reward(
    s: Any, obj_pos: Vector, obj_radius: float, grip_margin: float, x_z_margin: float
) -> float:
    """The caging reward of push-back, soccer, sweep and sweep-into: it ignores the action.

    Args:
        s: The scene; needs `obj_init_pos` and `init_tcp`.
        obj_pos: (3,) the object.
        obj_radius: of the object's bounding sphere.
        grip_margin: How far beyond the radius a pad may be and still pinch.
        x_z_margin: Distance in the x-z plane that counts as caged.
    """
    y_caging = pads_around(s, obj_pos, obj_radius, 0.05)
    y_gripping = pads_around(s, obj_pos, obj_radius, obj_radius + grip_margin)
    caging = hamacher_product(y_caging, x_z_caging(s, obj_pos, x_z_margin))
    gripping = y_gripping if caging > 0.95 else 0.0
    return (caging + gripping) / 2.0


@kernel
def pads_around(s: Any, obj_pos: Vector, inner: float, outer: float) -> float:
    """Whether both pads are between `inner` and `outer` away from the object in y.

    The official margins compare with `init_left_pad` and `init_right_pad`, which are views of the
    *current* pads.
    """
    right = tolerance(
        obj_pos[1] - s.right_pad[1],
        bounds=(inner, outer),
        margin=abs(abs(obj_pos[1] - s.right_pad[1]) - 0.05),
    )
    left = tolerance(
        s.left_pad[1] - obj_pos[1],
        bounds=(inner, outer),
        margin=abs(abs(obj_pos[1] - s.left_pad[1]) - 0.05),
    )
    return hamacher_product(right, left)


@kernel
def x_z_caging(s: Any, obj_pos: Vector, margin: float) -> float:
    """Whether the gripper's centre is within `margin` of the object in the x-z plane."""
    init_distance = norm(s.obj_init_pos[0] - s.init_tcp[0], 0.0, s.obj_init_pos[2] - s.init_tcp[2])
    return tolerance(
        norm(s.tcp[0] - obj_pos[0], 0.0, s.tcp[2] - obj_pos[2]),
        bounds=(0.0, margin),
        margin=init_distance - margin,
    )
