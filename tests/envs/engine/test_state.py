import subprocess
import sys

import numpy as np
import pytest

from envs.engine.template import numeric_attributes

CONTINUE = """
import sys
import numpy as np
from envs.engine import EngineVectorEnv
from envs.vector import VectorOptions

path, version, *tasks = sys.argv[1:]
options = VectorOptions(
    seed=9, envs_per_task=2, max_episode_steps=60, goals="random", one_hot=True
)
env = EngineVectorEnv(
    tuple(tasks), options, reward_version=version, goal_seed=42, one_goal_stream=False
)
saved = np.load(path)
actions = saved["actions"]
env.set_state({key: saved[key] for key in saved.files if key != "actions"})
trajectory = [np.concatenate([r[0].ravel(), r[1], r[3]]) for r in map(env.step, actions)]
np.save(path + ".npy", np.array(trajectory))
env.close()
"""


@pytest.mark.parametrize(
    ("version", "tasks"),
    [("v2", ("push-v3", "drawer-open-v3", "window-close-v3")), ("v1", ("pick-place-v3",))],
)
def test_continues_bit_for_bit_in_a_fresh_process(make_env, act, tmp_path, version, tasks):
    env = make_env(tasks, envs_per_task=2, steps=60, version=version)
    generator = np.random.default_rng(0)
    env.reset()
    for _ in range(85):  # into the second episode
        env.step(act(env, generator))
    state = env.get_state()
    actions = np.array([act(env, generator) for _ in range(100)])
    path = tmp_path / "state.npz"
    np.savez(path, actions=actions, **state)

    expected = [np.concatenate([r[0].ravel(), r[1], r[3]]) for r in map(env.step, actions)]
    subprocess.run([sys.executable, "-c", CONTINUE, path, version, *tasks], check=True)
    found = np.load(f"{path}.npy")
    assert found.tobytes() == np.array(expected).tobytes()


@pytest.mark.parametrize("goals", ["sequential", "once"])
def test_a_state_can_be_returned_to_again_and_again(make_env, act, goals):
    # Of 30 goals played once each, after 40 steps, a half of the environments rests.
    env = make_env(steps=30, goals=goals, envs_per_task=30 if goals == "once" else 2)
    env.reset()
    generator = np.random.default_rng(0)
    for _ in range(40):
        env.step(act(env, generator))
    state = env.get_state()
    assert all(isinstance(value, np.ndarray) for value in state.values())
    actions = [act(env, generator) for _ in range(50)]
    first = [env.step(action) for action in actions]
    env.set_state(state)
    second = [env.step(action) for action in actions]
    for here, there in zip(first, second, strict=True):
        for ours, theirs in zip(here[:4], there[:4], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(here[4]["goal_index"], there[4]["goal_index"])


def test_foreign_states_are_refused_unharmed(make_env, act):
    env = make_env()
    env.reset()
    state = env.get_state()
    with pytest.raises(ValueError, match="elapsed"):
        env.set_state({key: value for key, value in state.items() if key != "elapsed"})
    with pytest.raises(ValueError, match="goal_seed"):
        env.set_state({**state, "goals": state["goals"] + 0.01})
    with pytest.raises(ValueError, match="goals outside"):
        env.set_state({**state, "goal_indices": state["goal_indices"] + 50})
    with pytest.raises(ValueError, match="no such official reward"):
        env.set_state({**state, "attributes/0/python/x": np.array(1)})
    for key, value in env.get_state().items():
        np.testing.assert_array_equal(value, state[key])
    other = make_env(envs_per_task=2)
    other.reset()
    with pytest.raises(ValueError, match="physics"):
        other.set_state(state)
    env.step(act(env, np.random.default_rng(0)))


def test_numbers_of_official_rewards_keep_their_kind(make_env, act):
    env, twin = (make_env("bin-picking-v3", version="v1") for _ in range(2))
    env.reset()
    for _ in range(3):
        env.step(act(env, np.random.default_rng(0)))
    (before,) = env._python_rewards._envs.values()
    kinds = {name: type(value) for name, value in numeric_attributes(before).items()}
    assert {float, np.float64} <= set(kinds.values())
    twin.reset()
    twin.set_state(env.get_state())
    (after,) = twin._python_rewards._envs.values()
    restored = {name: type(value) for name, value in numeric_attributes(after).items()}
    assert restored == kinds
