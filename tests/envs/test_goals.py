import numpy as np
import pytest

from envs.goals import NUM_GOALS, GoalSchedule

ALL = np.arange(6)


def _schedule(order="random", seed=0, num_tasks=2, envs_per_task=3):
    return GoalSchedule(order, num_tasks=num_tasks, envs_per_task=envs_per_task, seed=seed)


def _draws(schedule, indices, episodes):
    return np.array([schedule.draw(indices) for _ in range(episodes)])


def test_random_goals_repeat_with_the_seed_and_differ_between_seeds():
    first, again = _draws(_schedule(), ALL, 20), _draws(_schedule(), ALL, 20)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, _draws(_schedule(seed=1), ALL, 20))


def test_no_two_environments_share_a_sequence():
    sequences = _draws(_schedule(), ALL, 20).T
    assert len({tuple(sequence) for sequence in sequences}) == len(ALL)


def test_an_environment_draws_the_same_whatever_the_others_draw():
    together = _draws(_schedule(), ALL, 5)
    schedule = _schedule()
    alone = _draws(schedule, np.array([4]), 5)
    np.testing.assert_array_equal(alone[:, 0], together[:, 4])
    np.testing.assert_array_equal(_draws(schedule, np.array([0]), 5)[:, 0], together[:, 0])


def test_random_goals_are_uniform():
    counts = np.bincount(_draws(_schedule(), ALL, 2000).ravel(), minlength=NUM_GOALS)
    assert counts.size == NUM_GOALS
    # 12000 draws: 240 a goal with a standard deviation of 15.3; five of them on either side.
    assert np.abs(counts - 240).max() < 77


@pytest.mark.parametrize("envs_per_task", [1, 2, 5, 10, 25, 50])
def test_sequential_goals_cover_each_goal_once(envs_per_task):
    schedule = _schedule("sequential", envs_per_task=envs_per_task)
    draws = _draws(schedule, np.arange(2 * envs_per_task), 50 // envs_per_task)
    np.testing.assert_array_equal(draws[0], 2 * list(range(envs_per_task)))
    for k in range(2):
        own = draws[:, k * envs_per_task : (k + 1) * envs_per_task]
        np.testing.assert_array_equal(np.sort(own.ravel()), np.arange(NUM_GOALS))


def test_sequential_goals_start_over_at_a_restart_and_wrap_at_the_end():
    schedule = _schedule("sequential", num_tasks=1, envs_per_task=1)
    draws = _draws(schedule, np.array([0]), 51)
    assert draws[-1] == draws[0] == 0
    schedule.restart()
    assert schedule.draw(np.array([0])) == 0


def test_state_continues_every_sequence():
    schedule = _schedule()
    # An odd number of 32-bit draws leaves half a word in PCG64's buffer, which must be kept too.
    _draws(schedule, ALL, 3)
    state = schedule.get_state()
    assert state[:, 4].all()
    expected = _draws(schedule, ALL, 10)
    restored = _schedule(seed=9)
    restored.set_state(state)
    np.testing.assert_array_equal(_draws(restored, ALL, 10), expected)


def test_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"shape \(6, 6\), expected \(2, 6\)"):
        _schedule(envs_per_task=1).set_state(_schedule().get_state())
