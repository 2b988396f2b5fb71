"""The engine's trajectories are the official ones, bit for bit."""

import numpy as np
import pytest
from metaworld.policies import ENV_POLICY_MAP

NAMES = ("observations", "rewards", "terminated", "truncated")


def assert_equal(here, there, what):
    assert here.dtype == there.dtype, what
    assert here.tobytes() == there.tobytes(), f"{what}: {np.flatnonzero(here != there)}"


def play(engine, official, choose, steps):
    observations, _ = official.reset()
    assert_equal(engine.reset()[0], observations, "first observation")
    for step in range(steps):
        actions = choose(observations)
        here, there = engine.step(actions), official.step(actions)
        observations = there[0]
        for name, ours, theirs in zip(NAMES, here[:4], there[:4], strict=True):
            assert_equal(ours, theirs, f"{name} of step {step}")
        for name, theirs in there[4].items():
            assert_equal(here[4][name], theirs, f"{name} of step {step}")
    return there


def test_mt10_with_random_actions_and_autoreset(make_env, act):
    engine, official = make_env("MT10", steps=40), make_env("MT10", steps=40, official=True)
    generator = np.random.default_rng(0)
    play(engine, official, lambda _: act(official, generator), 90)


@pytest.mark.filterwarnings("ignore:Constant")
@pytest.mark.parametrize("task", ["pick-place-v3", "peg-insert-side-v3", "door-open-v3"])
def test_a_scripted_policy_that_solves_the_task(make_env, task):
    engine, official = make_env(task), make_env(task, official=True)
    policy, generator = ENV_POLICY_MAP[task](), np.random.default_rng(0)
    succeeded = []

    def choose(observations):
        wanted = policy.get_action(observations[0, :39]) + generator.normal(scale=0.1, size=4)
        succeeded.append(official._infos["success"][0])
        return np.clip(wanted, -1, 1).astype(np.float32)[None]

    play(engine, official, choose, 200)
    assert any(succeeded[1:])  # the part where something is held is compared too


def test_v1_rewards_run_the_official_code(make_env, act):
    tasks = ("push-v3", "window-close-v3")
    engine = make_env(tasks, steps=30, version="v1")
    official = make_env(tasks, steps=30, version="v1", official=True)
    generator = np.random.default_rng(0)
    play(engine, official, lambda _: act(official, generator), 70)


def test_several_environments_per_task_on_any_number_of_threads(make_env, act):
    results = []
    for num_threads in (1, 3):
        engine = make_env(envs_per_task=4, steps=20, num_threads=num_threads)
        generator = np.random.default_rng(0)
        trajectory = [engine.reset()[0]]
        for _ in range(45):
            observations, rewards, *_ = engine.step(act(engine, generator))
            trajectory += [observations, rewards]
        results.append(trajectory)
    for first, second in zip(*results, strict=True):
        assert_equal(first, second, "threads")
