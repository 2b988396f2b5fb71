"""What happens where the engine's numbers are not the official ones."""

import subprocess
import sys

import numpy as np
import pytest
from metaworld.envs.sawyer_reach_v3 import SawyerReachEnvV3

import envs
from envs.engine.layout import bvh_count_offset
from envs.metaworld import OfficialVectorEnv


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def make():
    made = []

    def make(**options):
        made.append(envs.make_vec("reach-v3", seed=0, **options))
        return made[-1]

    yield make
    for env in made:
        env.close()


def test_a_reward_that_rounds_differently_is_left_to_the_official_code(make, monkeypatch, caplog):
    official = SawyerReachEnvV3.evaluate_state

    def differently(self, obs, action):
        reward, info = official(self, obs, action)
        return np.nextafter(reward, 11.0), info

    monkeypatch.setattr(SawyerReachEnvV3, "evaluate_state", differently)
    env, twin = make(), make(engine="official")
    assert env.python_tasks == ("reach-v3",)
    assert "this machine rounds differently: reward of step 0" in caplog.text
    env.reset()
    twin.reset()
    actions = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(env.step(actions)[1], twin.step(actions)[1])


def test_physics_that_round_differently_are_left_to_the_official_environments(
    make, monkeypatch, caplog
):
    official = SawyerReachEnvV3.set_xyz_action

    def differently(self, action):
        official(self, action)
        self.data.mocap_pos += 1e-12

    monkeypatch.setattr(SawyerReachEnvV3, "set_xyz_action", differently)
    assert isinstance(make(), OfficialVectorEnv)
    assert "the fast engine cannot be used (this machine rounds differently: the observation" in (
        caplog.text
    )


def test_an_unknown_library_is_left_to_the_official_environments():
    code = """
import ctypes
import mujoco
known = ctypes.CDLL.__getattr__
def without(self, name):
    if name == "mj_projectConstraint":
        raise AttributeError(name)
    return known(self, name)
ctypes.CDLL.__getattr__ = without
import envs
print(type(envs.make_vec("reach-v3", seed=0)).__name__)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "OfficialVectorEnv", result.stderr
    assert "has no function mj_projectConstraint" in result.stderr


def test_mujoco_clears_no_marks_and_the_model_is_as_it_was(make):
    assert bvh_count_offset() is not None  # of the MuJoCo that is installed
    env = make()
    env.reset()
    (model,), (data,) = env._simulation._models, env._simulation.data
    count = model.nbvh
    data.bvh_active[:] = 1
    env.step(np.ones((1, 4), np.float32))
    assert model.nbvh == count > 0
    assert data.bvh_active.all()
