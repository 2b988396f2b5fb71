"""A task that Meta-World does not have, added as docs/engine.md says; kernels run as Python."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from metaworld.envs.sawyer_reach_v3 import SawyerReachEnvV3
from metaworld.utils import reward_utils

import envs
from envs import registry
from envs.engine.check import first_difference
from envs.engine.exact import distance
from envs.engine.scene import ObservedObject, Task, position, rotation_matrix
from envs.engine.shaping import tolerance
from envs.engine.simulation import Simulation
from envs.engine.tasks import find_task
from envs.engine.template import Template
from mtrl.errors import UserError


class HoverEnv(SawyerReachEnvV3):
    """A 51st task: hold the left pad above the puck, at the goal's height."""

    def evaluate_state(self, obs, action):
        above = np.array([obs[4], obs[5], self._target_pos[2]])
        error = np.linalg.norm(self.get_body_com("leftpad") - above)
        reward = reward_utils.tolerance(
            error, bounds=(0, 0.02), margin=self.maxReachDist, sigmoid="long_tail"
        )
        names = ("near_object", "grasp_success", "grasp_reward", "in_place_reward")
        return reward, {
            "success": float(error < 0.02),
            **dict.fromkeys(names, 0.0),
            "obj_to_target": error,
            "unscaled_reward": reward,
        }


def evaluate(s: Any, out: Any) -> None:
    above = np.array([s.obs[4], s.obs[5], s.target_pos[2]])
    error = distance(s.left_pad, above)
    out.reward = tolerance(error, bounds=(0.0, 0.02), margin=s.maxReachDist)
    out.success = error < 0.02
    out.near_object = 0.0
    out.grasp_success = 0.0
    out.grasp_reward = 0.0
    out.in_place_reward = 0.0
    out.obj_to_target = error


HOVER = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("body", "obj"), rotation_matrix("geom", "objGeom")),),
    constants=("_target_pos", "maxReachDist"),
)


@pytest.fixture
def template():
    env = HoverEnv()
    env._set_task_called = True
    env._partially_observable = False
    del env.sawyer_observation_space
    low, high = env._random_reset_space.low, env._random_reset_space.high
    yield Template(env, np.random.default_rng(0).uniform(low, high, (50, low.size)))
    env.close()


def test_a_made_up_task(template):
    simulation = Simulation([template], [HOVER], envs_per_task=2, num_threads=1)
    assert first_difference(simulation, template, 1) is None
    assert simulation.measures["reward"][1] > 0


@pytest.fixture
def registered():
    envs.register_task("hover-v3", HoverEnv, HOVER)
    yield
    registry._environments.clear()
    registry._kernels.clear()


def test_a_registered_task_beside_official_ones(registered):
    tasks = ["hover-v3", "push-v3"]
    fast, official = (envs.make_vec(tasks, seed=0, engine=kind) for kind in ("fast", "official"))
    assert fast.python_tasks == ()
    fast.reset()
    official.reset()
    generator = np.random.default_rng(0)
    for _ in range(20):
        actions = generator.uniform(-1, 1, (2, 4)).astype(np.float32)
        here, there = fast.step(actions), official.step(actions)
        np.testing.assert_array_equal(here[0], there[0])
        np.testing.assert_array_equal(here[1], there[1])
    envs.register_task("hover-v3", HoverEnv)  # without kernels
    slow = envs.make_vec(tasks, seed=0)
    assert slow.python_tasks == ("hover-v3",)
    for env in (fast, official, slow):
        env.close()


def test_names_that_are_taken_cannot_be_registered():
    with pytest.raises(UserError, match="'push-v3', a task there is already"):
        envs.register_task("push-v3", HoverEnv)
    with pytest.raises(UserError, match="'MT10', a benchmark's"):
        envs.register_task("MT10", HoverEnv)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", HoverEnv), "`name` is empty"),
        (("x-v3", int), "`environment` is <class 'int'>: give a class derived from"),
        (("x-v3", HoverEnv, 3), "`kernels` is 3: give a Task"),
    ],
)
def test_what_is_no_task_cannot_be_registered(arguments, message):
    with pytest.raises(UserError, match=message):
        envs.register_task(*arguments)
    assert not registry.is_registered(arguments[0])


def almost(s: Any, out: Any) -> None:
    error = distance(s.left_pad, np.array([s.obs[4], s.obs[5], s.target_pos[2]]))
    out.reward = tolerance(error, bounds=(0.0, 0.02), margin=s.maxReachDist) * (1.0 + 1e-15)
    out.success = error < 0.02
    out.obj_to_target = error


def test_a_wrong_last_bit_is_noticed(template):
    task = Task(almost, HOVER.objects, HOVER.constants)
    simulation = Simulation([template], [task], envs_per_task=1, num_threads=1)
    assert "reward of step" in first_difference(simulation, template, 0)


def test_a_live_attribute_cannot_be_a_constant(template):
    task = Task(evaluate, HOVER.objects, (*HOVER.constants, "init_left_pad"))
    with pytest.raises(TypeError, match="declare it as live"):
        Simulation([template], [task], envs_per_task=1, num_threads=1)


def test_tasks_without_kernels_are_none():
    assert find_task("no-such-task-v3") is None
    assert find_task("reach-v3") is not None


UNCOMPILED = """
import numpy as np
from envs.engine import native
from envs.engine.check import first_difference
from envs.engine.simulation import Simulation
from envs.engine.tasks import find_task
from envs.engine.template import Template
from mtrl.errors import UserError
from envs.metaworld import make_official_env, draw_goals

assert not native.COMPILED
for name in ("pick-place-v3", "drawer-close-v3", "peg-insert-side-v3", "door-open-v3"):
    env = make_official_env(name, "v2")
    template = Template(env, draw_goals([env], 42, one_stream=False)[0])
    simulation = Simulation([template], [find_task(name)], envs_per_task=1, num_threads=1)
    assert first_difference(simulation, template, 0) is None, name
"""


def test_kernels_run_uncompiled_for_debugging():
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-c", UNCOMPILED], check=True, env=environment)
