import numpy as np
import pytest

from envs import make_vec
from envs.toy import SUCCESS_RADIUS, TOY_TASKS

_TURNS = {
    "toy-reach": lambda x, y: (x, y),
    "toy-left": lambda x, y: (-y, x),
    "toy-mirror": lambda x, y: (-x, -y),
    "toy-right": lambda x, y: (y, -x),
}


def _targets(envs, observations):
    """The targets (K*N, 2), worked out from the observed goals."""
    names = np.repeat(envs.task_names, envs.envs_per_task)
    goals = observations[:, 2:4]
    return np.array([_TURNS[name](*goal) for name, goal in zip(names, goals, strict=True)])


def _success_rates(envs, policy, episodes):
    """Share of episodes (K,) in which the policy reached the target at any step."""
    rates = np.zeros(envs.num_tasks)
    observations, _ = envs.reset()
    for _ in range(episodes):
        success = np.zeros(envs.num_envs, bool)
        for _ in range(envs.max_episode_steps):
            observations, *_, infos = envs.step(policy(observations))
            success |= infos["success"]
        rates += success.reshape(envs.num_tasks, -1).mean(axis=1)
    return rates / episodes


def test_every_task_has_a_known_target():
    assert set(_TURNS) == set(TOY_TASKS)


def test_a_straight_line_solves_every_goal_of_every_task():
    envs = make_vec("toy", seed=0, envs_per_task=50, goals="sequential")

    def policy(observations):
        return (_targets(envs, observations) - observations[:, :2]) / 0.1

    np.testing.assert_array_equal(_success_rates(envs, policy, episodes=1), 1.0)


def test_a_random_policy_rarely_succeeds():
    envs = make_vec("toy", seed=0, envs_per_task=50)
    generator = np.random.default_rng(0)
    rates = _success_rates(envs, lambda _: generator.uniform(-1, 1, (200, 2)), episodes=10)
    assert (rates < 0.05).all()


def test_solving_one_task_fails_the_others():
    envs = make_vec("toy", seed=0, envs_per_task=50)
    rates = _success_rates(envs, lambda obs: (obs[:, 2:4] - obs[:, :2]) / 0.1, episodes=1)
    np.testing.assert_array_equal(rates, [1, 0, 0, 0])


def test_reward_and_success_follow_the_distance():
    envs = make_vec("toy", seed=0, envs_per_task=4)
    observations, _ = envs.reset()
    targets = _targets(envs, observations)
    generator = np.random.default_rng(0)
    for _ in range(envs.max_episode_steps):
        actions = generator.uniform(-3, 3, envs.action_space.shape).astype(np.float32)
        before = observations[:, :2]
        observations, rewards, *_, infos = envs.step(actions)
        position = infos["final_obs"][:, :2]
        np.testing.assert_allclose(position - before, 0.1 * actions.clip(-1, 1), atol=1e-12)
        distance = np.hypot(*(position - targets).T)
        np.testing.assert_allclose(infos["obj_to_target"], distance)
        np.testing.assert_allclose(rewards, 10 * np.exp(-2 * distance))
        np.testing.assert_array_equal(infos["success"], distance <= SUCCESS_RADIUS)
        assert ((rewards > 0) & (rewards <= 10)).all()


@pytest.mark.parametrize("corner", [(1.0, 1.0), (-1.0, 1.0)])
def test_the_point_stays_in_the_arena(corner):
    envs = make_vec("toy-reach", seed=0)
    envs.reset()
    for _ in range(envs.max_episode_steps - 1):
        observations, *_ = envs.step(np.array([corner]))
        assert envs.observation_space.contains(observations)
    np.testing.assert_array_equal(observations[0, :2], 1.5 * np.array(corner))


def test_all_tasks_share_the_goals_and_the_goal_seed_decides_them():
    def goals(seed, goal_seed):
        envs = make_vec("toy", seed=seed, envs_per_task=50, goals="sequential", goal_seed=goal_seed)
        return envs.reset()[0][:, 2:4].reshape(4, 50, 2)

    first = goals(0, 42)
    np.testing.assert_array_equal(first, np.broadcast_to(first[0], first.shape))
    np.testing.assert_array_equal(first, goals(1, 42))
    assert not np.array_equal(first, goals(0, 43))
