"""The kernels' arithmetic is NumPy's, SciPy's and the package's, to the last bit."""

import numpy as np
import pytest
from metaworld.utils import reward_utils
from scipy.spatial.transform import Rotation

from envs.engine import caging, exact, numerics, shaping

RNG = np.random.default_rng(0)
SAMPLES = 2000


def test_norms():
    for vector in RNG.normal(size=(SAMPLES, 4)) * 10.0 ** RNG.integers(-6, 3, (SAMPLES, 1)):
        assert numerics.norm(*vector[:3]) == np.linalg.norm(vector[:3])
        assert numerics.norm2(*vector[:2]) == np.linalg.norm(vector[:2])
        assert numerics.norm4(*vector) == np.linalg.norm(vector)


def test_distances():
    scale = (3.0, 2.0, 1.0)
    for a, b in RNG.normal(size=(200, 2, 3)):
        assert exact.distance(a, b) == np.linalg.norm(a - b)
        assert exact.distance_xy(a, b) == np.linalg.norm(a[:2] - b[:2])
        assert exact.distance_xz(a, b) == np.linalg.norm(a[[0, 2]] - b[[0, 2]])
        assert exact.scaled_distance(a, b, scale) == np.linalg.norm((a - b) * np.array(scale))


def test_scalar_functions():
    for x in RNG.uniform(1e-6, 8, SAMPLES):
        assert numerics.exp(-x) == np.exp(-x)
        assert numerics.log(x) == np.log(x)
        assert numerics.sin(x) == np.sin(np.array([x])).item()
        assert numerics.cos(-x) == np.cos(np.array([-x])).item()
        assert numerics.square(x) == np.float64(x) ** 2


def test_float32_arithmetic():
    for a, b in RNG.uniform(0, 1, (SAMPLES, 2)).tolist():
        narrow = np.float32(a)
        assert exact.plus(float(narrow), b, True) == narrow + b
        assert exact.times(float(narrow), b, True) == narrow * b
        assert exact.mean(float(narrow), b, True) == (narrow + b) / 2
        assert exact.plus(a, b, False) == a + b
        assert shaping.hamacher_product(b, float(narrow), True) == reward_utils.hamacher_product(
            b, narrow
        )
        assert shaping.hamacher_product(a, b) == reward_utils.hamacher_product(a, b)


@pytest.mark.parametrize("sigmoid", ["long_tail", "gaussian"])
@pytest.mark.parametrize("margin", [0.0, 0.05, 0.7])
def test_tolerance(sigmoid, margin):
    code = {"long_tail": shaping.LONG_TAIL, "gaussian": shaping.GAUSSIAN}[sigmoid]
    for x in RNG.uniform(-0.5, 1, SAMPLES):
        official = reward_utils.tolerance(x, (0.1, 0.2), margin=margin, sigmoid=sigmoid)
        assert shaping.tolerance(x, (0.1, 0.2), margin, code) == official


def test_gripper_effort():
    for effort in (
        *RNG.uniform(-1.5, 1.5, SAMPLES).astype(np.float32),
        np.float32(1),
        np.float32(0),
    ):
        for desired in (1.0, 0.7):
            official = min(max(0, effort), desired) / desired
            value, single = caging.gripper_closed(effort, desired)
            assert value == official
            assert single == isinstance(official, np.float32)


def test_rect_prism_tolerance():
    zero, one = np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 1.0])
    for point in RNG.uniform(-0.3, 1.3, (SAMPLES, 3)):
        official = reward_utils.rect_prism_tolerance(point, zero, one)
        value, inside = shaping.rect_prism_tolerance(point, zero, one)
        assert value == official
        assert inside == isinstance(official, np.float64)


def test_rotations():
    half_turns = Rotation.from_euler("xyz", np.pi * RNG.integers(-1, 2, (50, 3)))
    for rotation in (*Rotation.random(500, rng=RNG), *half_turns):
        matrix = rotation.as_matrix()
        quaternion = np.empty(4)
        exact.rotation_to_quaternion(matrix.ravel(), quaternion)
        assert quaternion.tobytes() == Rotation.from_matrix(matrix).as_quat().tobytes()
