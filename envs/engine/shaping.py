"""The official `reward_utils` and caging reward, as kernels."""

from typing import Any

import numpy as np

from .compiler import kernel
from .exact import Vector, distance, distance_xz, mean, rounded
from .numerics import exp, square

LONG_TAIL = 0
GAUSSIAN = 1

# Every official call leaves `value_at_margin` at 0.1, so the sigmoids' scales are constants.
_LONG_TAIL_SCALE = float(np.sqrt(1 / 0.1 - 1))
_GAUSSIAN_SCALE = float(np.sqrt(-2 * np.log(0.1)))


@kernel
def tolerance(
    x: float, bounds: tuple[float, float], margin: float, sigmoid: int = LONG_TAIL
) -> float:
    """1 where `x` lies within the bounds, falling to 0.1 at `margin` beyond them."""
    lower, upper = bounds
    if lower <= x <= upper:
        return 1.0
    if margin == 0:
        return 0.0
    d = (lower - x if x < lower else x - upper) / margin
    if sigmoid == GAUSSIAN:
        return exp(-0.5 * square(d * _GAUSSIAN_SCALE))
    return 1.0 / (square(d * _LONG_TAIL_SCALE) + 1.0)


@kernel
def hamacher_product(a: float, b: float, single: bool = False) -> float:
    """The t-norm `a b / (a + b - a b)`, in float32 if `single`."""
    a, b = rounded(a, single), rounded(b, single)
    product = rounded(a * b, single)
    denominator = rounded(rounded(a + b, single) - product, single)
    return rounded(product / denominator, single) if denominator > 0 else 0.0


@kernel
def _in_range(a: float, b: float, c: float) -> bool:
    return b <= a <= c if c >= b else c <= a <= b


@kernel
def rect_prism_tolerance(curr: Vector, zero: Vector, one: Vector) -> tuple[float, bool]:
    """Rise from 0 at the corner `zero` of a box to 1 at `one`; 1 outside. And whether inside."""
    for axis in range(3):
        if not _in_range(curr[axis], zero[axis], one[axis]):
            return 1.0, False
    x_scale = (curr[0] - zero[0]) / (one[0] - zero[0])
    y_scale = (curr[1] - zero[1]) / (one[1] - zero[1])
    z_scale = (curr[2] - zero[2]) / (one[2] - zero[2])
    return x_scale * y_scale * z_scale, True


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
        s: The scene; needs `obj_init_pos` and `init_tcp`.
        obj_pos: (3,) the object.
        obj_radius: of the object's bounding sphere.
        pad_success_thresh: Distance of the pads to the object that counts as caged.
        object_reach_radius: Distance of the gripper's centre to the object that counts as reached.
        xz_thresh: Distance in the x-z plane that counts as caged.
        desired_gripper_effort: Effort that counts as closed.
        high_density: Average with the caging reward.
        medium_density: Average with a reaching reward.
    """
    caging_left = _pad_caging(s, s.left_pad, obj_pos, obj_radius, pad_success_thresh)
    caging_right = _pad_caging(s, s.right_pad, obj_pos, obj_radius, pad_success_thresh)
    caging_y = hamacher_product(caging_left, caging_right)

    caging_xz = tolerance(
        distance_xz(s.tcp, obj_pos),
        bounds=(0.0, xz_thresh),
        margin=distance_xz(s.obj_init_pos, s.init_tcp) - xz_thresh,
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
            margin=abs(distance(s.obj_init_pos, s.init_tcp) - object_reach_radius),
        )
        return mean(caging_and_gripping, reach, single), single
    return caging_and_gripping, single


@kernel
def _pad_caging(
    s: Any, pad: Vector, obj_pos: Vector, obj_radius: float, pad_success_thresh: float
) -> float:
    pad_to_obj = abs(pad[1] - obj_pos[1])
    pad_to_objinit = abs(pad[1] - s.obj_init_pos[1])
    return tolerance(
        pad_to_obj,
        bounds=(obj_radius, pad_success_thresh),
        margin=abs(pad_to_objinit - pad_success_thresh),
    )
