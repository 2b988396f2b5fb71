"""Arithmetic that rounds as the official code does, bit for bit.

The official operations are matched, not improved: another order of operations, or a fused one
where they use two, changes the last bit.
"""

import math

import numpy as np
from numpy.typing import NDArray

from .compiler import kernel
from .numerics import norm, norm2

Vector = NDArray[np.float64]


@kernel
def distance(a: Vector, b: Vector) -> float:
    """`np.linalg.norm(a - b)` for 3-vectors."""
    return norm(a[0] - b[0], a[1] - b[1], a[2] - b[2])


@kernel
def distance_xy(a: Vector, b: Vector) -> float:
    """`np.linalg.norm(a[:2] - b[:2])`."""
    return norm2(a[0] - b[0], a[1] - b[1])


@kernel
def distance_xz(a: Vector, b: Vector) -> float:
    """`np.linalg.norm(a[[0, 2]] - b[[0, 2]])`."""
    return norm2(a[0] - b[0], a[2] - b[2])


@kernel
def scaled_distance(a: Vector, b: Vector, scale: tuple[float, float, float]) -> float:
    """`np.linalg.norm((a - b) * scale)` for 3-vectors."""
    return norm(
        (a[0] - b[0]) * scale[0],
        (a[1] - b[1]) * scale[1],
        (a[2] - b[2]) * scale[2],
    )


@kernel
def rounded(x: float, single: bool) -> float:
    """Round to float32 if `single`.

    Actions are float32, and a float32 operand turns a Python float's arithmetic into float32. The
    kernels carry such a value as float64 with the flag `single` and round after each operation,
    which gives the float32 result exactly: float64 has more than twice float32's digits.
    """
    return float(np.float32(x)) if single else x


@kernel
def plus(a: float, b: float, single: bool) -> float:
    """`a + b`, in float32 if `single`."""
    return rounded(rounded(a, single) + rounded(b, single), single)


@kernel
def times(a: float, b: float, single: bool) -> float:
    """`a * b`, in float32 if `single`."""
    return rounded(rounded(a, single) * rounded(b, single), single)


@kernel
def mean(a: float, b: float, single: bool) -> float:
    """`(a + b) / 2`, in float32 if `single`."""
    return rounded(plus(a, b, single) / 2.0, single)


@kernel
def rotation_to_quaternion(matrix: Vector, quaternion: Vector) -> None:
    """`scipy.spatial.transform.Rotation.from_matrix(matrix).as_quat()`: (9,) to (4,), x y z w.

    For matrices that are orthogonal to within 1e-12, which MuJoCo's are. Shepperd's method, as
    in Markley, "Unit Quaternion from Rotation Matrix" (2008).
    """
    trace = matrix[0] + matrix[4] + matrix[8]
    largest, choice = matrix[0], 0
    if matrix[4] > largest:
        largest, choice = matrix[4], 1
    if matrix[8] > largest:
        largest, choice = matrix[8], 2
    if trace > largest:
        quaternion[0] = matrix[7] - matrix[5]
        quaternion[1] = matrix[2] - matrix[6]
        quaternion[2] = matrix[3] - matrix[1]
        quaternion[3] = 1.0 + trace
    else:
        i = choice
        j = (i + 1) % 3
        k = (j + 1) % 3
        quaternion[i] = 1.0 - trace + 2.0 * matrix[3 * i + i]
        quaternion[j] = matrix[3 * j + i] + matrix[3 * i + j]
        quaternion[k] = matrix[3 * k + i] + matrix[3 * i + k]
        quaternion[3] = matrix[3 * k + j] - matrix[3 * j + k]
    x, y, z, w = quaternion[0], quaternion[1], quaternion[2], quaternion[3]
    length = math.sqrt(x * x + y * y + z * z + w * w)
    for axis in range(4):
        quaternion[axis] /= length
