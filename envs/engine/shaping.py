"""The official `reward_utils` as kernels."""

from typing import Any

import numpy as np

from .compiler import kernel
from .exact import Vector, rounded
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
def grab_effort(effort: Any) -> float:
    """`(np.clip(effort, -1, 1) + 1) / 2` of a float32: how far the gripper is told to close."""
    clipped = min(max(effort, np.float32(-1.0)), np.float32(1.0))
    return float(np.float32(np.float32(clipped + np.float32(1.0)) / np.float32(2.0)))


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
