"""The real Meta-World, compared with the official package used by hand."""

from collections import OrderedDict

import gymnasium as gym
import metaworld
import numpy as np
import pytest
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from metaworld.env_dict import MT10_V3, MT10_V3_ARGS_KWARGS

from envs import make_vec
from envs.benchmarks import MT10, MT50
from envs.metaworld import MEASURES, OBSERVATION_SIZE, draw_goals

# The first has a goal rule that rejects draws, the second moves a body of the model, the third a
# joint; none of them is first in a benchmark.
TASKS = ("push-v3", "drawer-close-v3", "window-open-v3")


@pytest.fixture(scope="module")
def three_tasks():
    envs = make_vec(TASKS, seed=0, max_episode_steps=4)
    yield envs
    envs.close()


def _official(names, seed):
    """The official package's environments and 50 tasks each, for a list of single tasks."""
    benchmarks = [metaworld.MT1(name, seed=seed) for name in names]
    return [
        (benchmark.train_classes[name](), benchmark.train_tasks)
        for name, benchmark in zip(names, benchmarks, strict=True)
    ]


def _random_actions(generator, num_envs):
    # Beyond [-1, 1] too: what happens there is the package's business.
    return generator.uniform(-1.5, 1.5, (num_envs, 4)).astype(np.float32)


def test_trajectories_and_goals_are_the_official_ones_bit_for_bit(three_tasks):
    generator = np.random.default_rng(0)
    first, _ = three_tasks.reset(seed=3)
    steps = []
    for _ in range(3 * three_tasks.max_episode_steps):
        actions = _random_actions(generator, len(TASKS))
        steps.append((actions, *three_tasks.step(actions)))

    for k, (env, tasks) in enumerate(_official(TASKS, seed=42)):
        observed, started = first, False
        for actions, observations, rewards, _, truncated, infos in steps:
            if not started:
                env.set_task(tasks[infos["goal_index"][k]])
                np.testing.assert_array_equal(observed[k, :OBSERVATION_SIZE], env.reset()[0])
            expected, reward, _, _, info = env.step(actions[k])
            np.testing.assert_array_equal(infos["final_obs"][k, :OBSERVATION_SIZE], expected)
            assert rewards[k] == reward
            assert {name: infos[name][k] for name in MEASURES} == info
            observed, started = observations, not truncated[k]
        assert truncated[k]


def test_named_benchmarks_have_the_official_benchmarks_goals():
    # One stream of numbers runs through a benchmark's tasks, so three of them show it.
    names = MT10[:3]
    tasks = metaworld._make_tasks(
        OrderedDict((name, MT10_V3[name]) for name in names),
        {name: MT10_V3_ARGS_KWARGS[name] for name in names},
        {"partially_observable": False},
        seed=7,
    )
    envs = [MT10_V3[name]() for name in names]
    for env in envs:
        env._set_task_called = True
    own = draw_goals(envs, 7, one_stream=True)
    for k, env in enumerate(envs):
        for goal in (0, 49):
            env.set_task(tasks[50 * k + goal])
            np.testing.assert_array_equal(own[k][goal], env._last_rand_vec)


def test_goals_of_a_list_do_not_depend_on_its_other_tasks(three_tasks):
    alone = make_vec(TASKS[1], seed=1)
    forced = {"goal_indices": np.array([33])}
    everywhere = {"goal_indices": np.full(3, 33)}
    np.testing.assert_array_equal(
        alone.reset(options=forced)[0][0, :OBSERVATION_SIZE],
        three_tasks.reset(options=everywhere)[0][1, :OBSERVATION_SIZE],
    )


def test_the_global_generator_is_left_alone():
    np.random.seed(0)  # noqa: NPY002
    expected = np.random.uniform()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    make_vec("reach-v3", seed=0).reset()
    assert np.random.uniform() == expected  # noqa: NPY002


def test_conformance_over_random_steps(three_tasks):
    generator = np.random.default_rng(1)
    observations, _ = three_tasks.reset()
    assert three_tasks.single_observation_space.shape == (OBSERVATION_SIZE + 3,)
    for _ in range(10):
        assert three_tasks.observation_space.contains(observations)
        assert observations.dtype == np.float64
        np.testing.assert_array_equal(observations[:, OBSERVATION_SIZE:], np.eye(3))
        observations, rewards, terminated, _, infos = three_tasks.step(
            _random_actions(generator, 3)
        )
        assert three_tasks.observation_space.contains(infos["final_obs"])
        assert rewards.dtype == np.float64
        assert not terminated.any()
        for name in MEASURES:
            assert infos[name].shape == (3,)
            assert infos[name].dtype == (np.bool_ if name == "success" else np.float64)


def test_returned_arrays_are_the_callers_own(three_tasks):
    generator = np.random.default_rng(5)
    three_tasks.reset()
    returned = three_tasks.step(_random_actions(generator, 3))
    arrays = [*returned[:4], *returned[4].values()]
    copies = [array.copy() for array in arrays]
    for _ in range(4):
        three_tasks.step(_random_actions(generator, 3))
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_the_same_seed_repeats_whole_trajectories(three_tasks):
    def play(seed):
        generator = np.random.default_rng(2)
        rows = [three_tasks.reset(seed=seed)[0]]
        rows += [three_tasks.step(_random_actions(generator, 3))[0] for _ in range(6)]
        return np.array(rows)

    first = play(5)
    np.testing.assert_array_equal(first, play(5))
    assert not np.array_equal(first, play(6))


def test_environments_of_a_task_differ_only_by_their_goal():
    envs = make_vec("reach-v3", seed=0, envs_per_task=2, one_hot=False)
    observations, infos = envs.reset()
    assert infos["goal_index"][0] != infos["goal_index"][1]
    assert not np.array_equal(observations[0], observations[1])
    observations, _ = envs.reset(options={"goal_indices": np.array([4, 4])})
    np.testing.assert_array_equal(observations[0], observations[1])
    assert envs.single_observation_space.shape == (OBSERVATION_SIZE,)


def test_reward_version_one_differs_and_is_the_official_one():
    name = "reach-v3"
    envs = make_vec(name, seed=0, reward_version="v1")
    envs.reset(options={"goal_indices": np.array([8])})
    benchmark = metaworld.MT1(name, seed=42)
    rewards = {}
    for version in ("v1", "v2"):
        official = benchmark.train_classes[name](reward_function_version=version)
        official.set_task(benchmark.train_tasks[8])
        official.reset()
        rewards[version] = official.step(np.ones(4, np.float32))[1]
    assert envs.step(np.ones((1, 4)))[1][0] == rewards["v1"] != rewards["v2"]


def test_episode_statistics_wrapper(three_tasks):
    envs = RecordEpisodeStatistics(three_tasks)
    envs.reset()
    generator = np.random.default_rng(3)
    infos = [envs.step(_random_actions(generator, 3))[4] for _ in range(4)][-1]
    np.testing.assert_array_equal(infos["episode"]["l"], 4)


@pytest.mark.slow
def test_every_task_starts_and_steps_inside_its_spaces():
    envs = make_vec("MT50", seed=0, max_episode_steps=2)
    assert envs.task_names == MT50
    observations, _ = envs.reset()
    generator = np.random.default_rng(4)
    for _ in range(5):
        assert envs.observation_space.contains(observations)
        observations, *_, infos = envs.step(_random_actions(generator, 50))
        assert envs.observation_space.contains(infos["final_obs"])
    # Fifty generators share no sequence: not all draw the same even once.
    assert len(set(infos["goal_index"])) > 10


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_official_engine_continues_bit_for_bit_inside_an_episode(version):
    # Bin-picking has an attribute that only exists after a while, pick-place numbers of its own.
    tasks = ("pick-place-v3", "bin-picking-v3")
    options = {"engine": "official", "max_episode_steps": 40, "reward_version": version}
    envs, restored = (make_vec(tasks, seed=seed, **options) for seed in (3, 9))
    envs.reset()
    generator = np.random.default_rng(0)
    for _ in range(55):
        actions = _random_actions(generator, 2)
        actions[:, 2:] = -1, 1  # down, and grasp
        envs.step(actions)
    restored.set_state(envs.get_state())
    for _ in range(30):
        actions = _random_actions(generator, 2)
        expected, found = envs.step(actions), restored.step(actions)
        for ours, theirs in zip(found[:4], expected[:4], strict=True):
            assert ours.tobytes() == theirs.tobytes()
        for name, values in expected[4].items():
            assert found[4][name].tobytes() == values.tobytes(), name


def test_a_simulation_of_the_official_engine_that_diverges_ends_its_episode(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves its log file where it runs
    envs = make_vec(("reach-v3", "push-v3"), seed=1, engine="official")
    generator = np.random.default_rng(0)
    first, _ = envs.reset()
    envs._envs[1].data.qvel[:] = 1e12
    _, rewards, _, truncated, infos = envs.step(_random_actions(generator, 2))
    assert truncated.tolist() == infos["diverged"].tolist() == [False, True]
    assert rewards[1] == 0
    np.testing.assert_array_equal(infos["final_obs"][1], first[1])
    assert all(np.isfinite(values).all() for values in infos.values())
    assert "push-v3 diverged" in caplog.text
    for _ in range(3):
        _, _, _, truncated, infos = envs.step(_random_actions(generator, 2))
        assert not truncated.any()
        assert not infos["diverged"].any()
    envs.close()


def test_the_official_goal_sequence_on_request():
    names, seed = ["reach-v3", "push-v3"], 3
    ours = make_vec(names, seed=seed, goal_seed=seed, goals="official", one_hot=False)
    # One by one, since the package draws a list's goals otherwise than those of single tasks.
    officials = [
        gym.make_vec(
            "Meta-World/custom-mt-envs", vector_strategy="sync", envs_list=[name], seed=seed
        )
        for name in names
    ]
    for reset_seed in (None, None, 7, None):  # ignored there, so here, too
        found, infos = ours.reset(seed=reset_seed)
        expected = [official.reset(seed=reset_seed)[0] for official in officials]
        np.testing.assert_array_equal(found, np.concatenate(expected))
        assert len(set(infos["goal_index"])) == 1
    for env in (ours, *officials):
        env.close()
