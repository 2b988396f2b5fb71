"""The half that all environments share, seen through the toy tasks."""

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from envs import make_vec


def _make(**arguments):
    return make_vec("toy", **({"seed": 0, "envs_per_task": 2, "max_episode_steps": 3} | arguments))


def _actions(envs, seed=0):
    shape = envs.action_space.shape
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def test_public_attributes():
    envs = _make()
    assert envs.num_tasks == envs.one_hot_width == len(envs.task_names) == 4
    assert (envs.envs_per_task, envs.num_envs, envs.num_goals) == (2, 8, 50)
    assert envs.max_episode_steps == 3
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert envs.observation_space.shape == (8, *envs.single_observation_space.shape)
    assert envs.action_space.shape == (8, *envs.single_action_space.shape)
    assert _make(one_hot=False).one_hot_width == 4


def test_spaces_shapes_and_dtypes_hold_at_every_step():
    envs = _make()
    observations, _ = envs.reset()
    for step in range(7):
        assert envs.observation_space.contains(observations)
        observations, rewards, terminated, truncated, infos = envs.step(_actions(envs, step))
        assert observations.shape == infos["final_obs"].shape == (8, 8)
        assert observations.dtype == infos["final_obs"].dtype == rewards.dtype == np.float64
        assert infos["goal_index"].dtype == np.int64
        for flags in (terminated, truncated, infos["success"], infos["_final_obs"]):
            assert flags.dtype == np.bool_
        for values in (rewards, terminated, truncated, *infos.values()):
            assert len(values) == envs.num_envs
        assert envs.observation_space.contains(infos["final_obs"])


def test_one_hot_names_the_task():
    observations, _ = _make().reset()
    plain, _ = _make(one_hot=False).reset()
    np.testing.assert_array_equal(observations[:, :4], plain)
    np.testing.assert_array_equal(observations[:, 4:], np.repeat(np.eye(4), 2, axis=0))


def test_an_episode_ends_by_time_and_the_next_begins_in_the_same_step():
    envs = _make()
    observations, infos = envs.reset()
    goals = infos["goal_index"]
    for step in (1, 2, 3):
        observations, _, terminated, truncated, infos = envs.step(np.ones((8, 2)))
        assert not terminated.any()
        assert truncated.all() == infos["_final_obs"].all() == (step == 3)
        # The step that ends an episode still belongs to it.
        np.testing.assert_array_equal(infos["goal_index"], goals)
        np.testing.assert_allclose(infos["final_obs"][:, :2], 0.1 * step)
    np.testing.assert_array_equal(observations[:, :2], 0.0)
    *_, infos = envs.step(np.ones((8, 2)))
    assert not np.array_equal(infos["goal_index"], goals)


def test_final_obs_is_the_next_observation_inside_an_episode():
    envs = _make()
    envs.reset()
    observations, *_, infos = envs.step(_actions(envs))
    np.testing.assert_array_equal(observations, infos["final_obs"])


def test_returned_arrays_are_the_callers_own():
    envs = _make()
    first, _ = envs.reset()
    returned = envs.step(_actions(envs))
    arrays = [first, *returned[:4], *returned[4].values()]
    copies = [array.copy() for array in arrays]
    for seed in range(4):
        envs.step(_actions(envs, seed))
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    # Nor does writing into them reach the environments.
    untouched = _make()
    untouched.reset()
    envs.reset(seed=0)
    untouched.step(_actions(envs))
    for array in (envs.step(_actions(envs))[0], envs.step(_actions(envs))[4]["final_obs"]):
        array[:] = 7.0
    untouched.step(_actions(envs))
    np.testing.assert_array_equal(envs.step(_actions(envs))[0], untouched.step(_actions(envs))[0])


def test_the_same_seed_repeats_and_another_differs():
    envs = _make()
    goals = [envs.reset()[1]["goal_index"] for _ in range(3)]
    again = [envs.reset(seed=0)[1]["goal_index"], *(envs.reset()[1]["goal_index"] for _ in "ab")]
    np.testing.assert_array_equal(goals, again)
    assert not np.array_equal(envs.reset(seed=1)[1]["goal_index"], goals[0])


def test_forced_goals_are_played_once_and_do_not_use_up_draws():
    forced = np.arange(8) + 40
    envs, other = _make(max_episode_steps=1), _make(max_episode_steps=1)
    _, infos = envs.reset(options={"goal_indices": forced})
    np.testing.assert_array_equal(infos["goal_index"], forced)
    *_, infos = envs.step(np.zeros((8, 2)))
    np.testing.assert_array_equal(infos["goal_index"], forced)
    *_, infos = envs.step(np.zeros((8, 2)))
    np.testing.assert_array_equal(infos["goal_index"], other.reset()[1]["goal_index"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goals": [1]}, "unknown keys"),
        ({"goal_indices": np.zeros(3, int)}, r"shape \(8,\), not int64 of shape \(3,\)"),
        ({"goal_indices": np.zeros(8)}, "integers"),
        ({"goal_indices": np.full(8, 50)}, r"\[0, 50\)"),
        ({"goal_indices": np.full(8, -1)}, r"\[0, 50\)"),
    ],
)
def test_wrong_reset_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _make().reset(options=options)


def test_sequential_goals_cover_each_goal_once_between_resets():
    envs = _make(goals="sequential", envs_per_task=5, max_episode_steps=1)
    envs.reset()
    envs.step(np.zeros((20, 2)))
    for _ in range(2):  # after a reset, whatever was played before
        _, infos = envs.reset()
        np.testing.assert_array_equal(infos["goal_index"], 4 * list(range(5)))
        played = [envs.step(np.zeros((20, 2)))[4]["goal_index"] for _ in range(10)]
        for own in np.array(played).reshape(10, 4, 5).transpose(1, 0, 2):
            np.testing.assert_array_equal(np.sort(own.ravel()), np.arange(50))


@pytest.mark.parametrize(
    "actions", [np.zeros(2), np.zeros((7, 2)), np.zeros((8, 3)), np.zeros((2, 4, 2))]
)
def test_actions_of_a_wrong_shape_are_refused(actions):
    envs = _make()
    envs.reset()
    with pytest.raises(ValueError, match=r"expected \(8, 2\)"):
        envs.step(actions)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_actions_that_are_not_finite_are_refused_before_anything_moves(value):
    envs, twin = _make(), _make()
    envs.reset()
    twin.reset()
    actions = np.zeros((8, 2))
    actions[5, 1] = value
    with pytest.raises(ValueError, match=r"environment 5 \(toy-mirror\) are not finite"):
        envs.step(actions)
    np.testing.assert_array_equal(envs.step(_actions(envs))[0], twin.step(_actions(envs))[0])


def test_state_continues_bit_for_bit_inside_an_episode():
    envs = _make()
    envs.reset()
    for seed in range(4):
        envs.step(_actions(envs, seed))
    state = envs.get_state()
    restored = _make(seed=5)
    restored.set_state(state)
    for seed in range(7):
        expected, found = envs.step(_actions(envs, seed)), restored.step(_actions(envs, seed))
        for ours, theirs in zip(
            (*found[:4], *found[4].values()), (*expected[:4], *expected[4].values()), strict=True
        ):
            assert ours.tobytes() == theirs.tobytes()


def test_a_state_before_the_first_reset_still_needs_one():
    restored = _make(seed=5)
    restored.reset()
    restored.set_state(_make().get_state())
    with pytest.raises(ResetNeeded):
        restored.step(_actions(restored))
    np.testing.assert_array_equal(
        restored.reset()[1]["goal_index"], _make().reset()[1]["goal_index"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"elapsed": np.zeros(12, np.int64)}, r"'elapsed', an array of shape \(8,\)"),
        ({"generators": None}, "'generators'.*found nothing"),
        ({"observations": 1.0}, "'observations'"),
        ({"goal_indices": np.full(8, 50)}, "goals outside"),
        ({"elapsed": np.full(8, 3)}, "episodes of 3 steps"),
    ],
)
def test_a_foreign_state_is_refused_unharmed(changes, message):
    envs, twin = _make(), _make()
    envs.reset()
    twin.reset()
    with pytest.raises(ValueError, match=message):
        envs.set_state(_make(seed=4).get_state() | changes)
    np.testing.assert_array_equal(envs.step(_actions(envs))[0], twin.step(_actions(envs))[0])


def test_send_and_recv_are_a_step():
    whole, split = _make(), _make()
    whole.reset()
    with pytest.raises(ResetNeeded):
        split.send(_actions(split))
    split.reset()
    with pytest.raises(RuntimeError, match="send"):
        split.recv()
    for seed in range(4):
        actions = _actions(whole, seed)
        split.send(actions)
        for call in (
            lambda: split.send(_actions(split)),
            split.reset,
            split.get_state,
            lambda: split.step(_actions(split)),
        ):
            with pytest.raises(RuntimeError, match="recv"):
                call()
        expected = whole.step(actions.copy())
        actions[:] = np.nan  # the caller may reuse its array at once
        np.testing.assert_array_equal(split.recv()[0], expected[0])
    with pytest.raises(ValueError, match="finite"):
        split.send(actions)
    split.step(_actions(split))


def test_no_simulation_diverges_here():
    envs = _make()
    envs.reset()
    *_, infos = envs.step(_actions(envs))
    assert infos["diverged"].dtype == np.bool_
    assert not infos["diverged"].any()


def test_stepping_needs_a_reset_and_closing_twice_is_fine():
    envs = _make()
    with pytest.raises(ResetNeeded):
        envs.step(_actions(envs))
    envs.close()
    envs.close()
    assert envs.closed


def test_gymnasium_wrappers_understand_it():
    envs = RecordEpisodeStatistics(_make())
    envs.reset()
    total = np.zeros(8)
    for step in range(3):
        _, rewards, _, truncated, infos = envs.step(_actions(envs, step))
        total += rewards
    assert truncated.all()
    np.testing.assert_array_equal(infos["episode"]["l"], 3)
    np.testing.assert_allclose(infos["episode"]["r"], total)

    listed = DictInfoToList(_make())
    listed.reset()
    infos = listed.step(_actions(envs))[-1]
    assert "final_obs" not in infos[0]
    infos = [listed.step(_actions(envs))[-1] for _ in range(2)][-1]
    assert infos[7]["final_obs"].shape == (8,)
    assert set(infos[7]) >= {"success", "goal_index"}
