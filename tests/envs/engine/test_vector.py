import gc
import threading
import time

import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from metaworld.policies import SawyerReachV3Policy

from envs.engine import EngineVectorEnv, simulation, vector
from envs.vector import VectorOptions
from mtrl.cores import available_cores


def engine_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("mtrl-engine")]


def test_send_and_recv_are_a_step(make_env, act):
    whole, split = make_env(), make_env()
    whole.reset()
    split.reset()
    generator = np.random.default_rng(0)
    for _ in range(5):
        actions = act(whole, generator)
        split.send(actions)
        actions_before = actions.copy()
        actions[:] = np.nan  # the caller may reuse its array at once
        here, there = split.recv(), whole.step(actions_before)
        np.testing.assert_array_equal(here[0], there[0])
        np.testing.assert_array_equal(here[1], there[1])


def test_calls_out_of_order_are_refused(make_env, act):
    env = make_env("reach-v3")
    actions = act(env, np.random.default_rng(0))
    with pytest.raises(ResetNeeded):
        env.step(actions)
    env.reset()
    with pytest.raises(RuntimeError, match="send"):
        env.recv()
    env.send(actions)
    for call in (lambda: env.send(actions), env.reset, env.get_state):
        with pytest.raises(RuntimeError, match="recv"):
            call()
    env.recv()
    env.step(actions)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_actions_that_are_not_finite_are_refused_before_anything_moves(make_env, act, value):
    env = make_env(envs_per_task=2)
    env.reset()
    before = env.get_state()
    actions = act(env, np.random.default_rng(0)).astype(np.float64)
    actions[3, 1] = value
    with pytest.raises(ValueError, match=r"environment 3 \(pick-place-v3\)"):
        env.step(actions)
    with pytest.raises(ValueError, match="shape"):
        env.step(actions[:2])
    np.testing.assert_array_equal(env.get_state()["physics"], before["physics"])
    env.step(np.zeros_like(actions))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_diverged_simulation_ends_its_episode(
    make_env, act, tmp_path, monkeypatch, caplog, version
):
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves its log file where it runs
    env, twin = (make_env(("reach-v3", "push-v3"), version=version) for _ in range(2))
    first, _ = env.reset(options={"goal_indices": np.array([1, 2])})
    twin.reset(options={"goal_indices": np.array([1, 2])})
    generator = np.random.default_rng(0)
    env._simulation.data[1].qvel[:] = 1e12
    actions = act(env, generator)
    observations, rewards, terminated, truncated, infos = env.step(actions)
    expected = twin.step(actions)

    assert truncated.tolist() == infos["diverged"].tolist() == [False, True]
    assert not terminated.any()
    assert rewards[1] == 0
    np.testing.assert_array_equal(infos["final_obs"][1], first[1])
    assert all(np.isfinite(values).all() for values in (observations, *infos.values()))
    assert env.num_diverged == 1
    assert "push-v3 diverged" in caplog.text
    # The neighbour has not noticed, and the next episode is sound.
    np.testing.assert_array_equal(observations[0], expected[0][0])
    for _ in range(3):
        _, _, _, truncated, infos = env.step(act(env, generator))
        assert not truncated.any()
        assert not infos["diverged"].any()


def test_close_stops_every_thread_at_once(make_env, act):
    before = len(engine_threads())
    idle, reset, busy = (make_env("reach-v3", num_threads=3) for _ in range(3))
    assert len(engine_threads()) == before + 9
    reset.reset()
    busy.reset()
    busy.send(act(busy, np.random.default_rng(0)))
    begun = time.perf_counter()
    for env in (idle, reset, busy, busy):
        env.close()
    assert time.perf_counter() - begun < 1
    assert len(engine_threads()) == before


def test_threads_default_to_the_cores(make_env):
    before = len(engine_threads())
    make_env("reach-v3")
    assert len(engine_threads()) == before + available_cores()


def test_a_dropped_environment_stops_its_threads():
    before = len(engine_threads())
    options = VectorOptions(
        seed=0, envs_per_task=1, max_episode_steps=500, goals="random", one_hot=True
    )
    env = EngineVectorEnv(
        ("reach-v3",), options, reward_version="v2", goal_seed=42, one_goal_stream=False
    )
    env.reset()
    threads = engine_threads()
    del env
    gc.collect()
    for thread in threads:
        thread.join(timeout=5)
    assert len(engine_threads()) == before


def test_python_rewards_are_announced_once(make_env, caplog):
    vector._say_once.cache_clear()
    make_env("reach-v3", version="v1")
    assert caplog.text.count("no compiled rewards for reach-v3") == 1
    caplog.clear()
    make_env("reach-v3", version="v1")
    assert not caplog.text


def test_a_wait_that_was_interrupted_can_be_taken_up_again(make_env, act, monkeypatch):
    env, twin = (make_env(envs_per_task=4) for _ in range(2))
    env.reset()
    twin.reset()
    actions = act(env, np.random.default_rng(0))
    env.send(actions)
    wait = env._workers.wait

    def interrupted(limit):
        monkeypatch.setattr(env._workers, "wait", wait)
        raise KeyboardInterrupt

    monkeypatch.setattr(env._workers, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        env.recv()
    for call in (env.get_state, env.reset, lambda: env.send(actions)):
        with pytest.raises(RuntimeError, match="recv"):
            call()
    np.testing.assert_array_equal(env.recv()[0], twin.step(actions)[0])
    np.testing.assert_array_equal(env.step(actions)[0], twin.step(actions)[0])


def test_a_step_that_was_interrupted_is_finished_by_recv(make_env, act, monkeypatch):
    env, twin = (make_env(envs_per_task=4) for _ in range(2))
    env.reset()
    twin.reset()
    actions = act(env, np.random.default_rng(0))

    def interrupted():
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(env, "_take_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        env.step(actions)
    np.testing.assert_array_equal(env.recv()[0], twin.step(actions)[0])
    np.testing.assert_array_equal(env.step(actions)[0], twin.step(actions)[0])


def test_without_threads_of_its_own_a_step_is_taken_in_the_calling_one(make_env, act, monkeypatch):
    env = make_env("reach-v3", num_threads=1)
    env.reset()
    stepping = []
    step_chunks = simulation.step_chunks

    def noting(*arguments):
        stepping.append(threading.current_thread().name)
        step_chunks(*arguments)

    monkeypatch.setattr(simulation, "step_chunks", noting)
    actions = act(env, np.random.default_rng(0))
    env.step(actions)
    env.send(actions)
    env.recv()
    assert stepping == [threading.current_thread().name, "mtrl-engine-0"]


def test_what_is_closed_stays_closed(make_env, act):
    env = make_env("reach-v3")
    env.reset()
    actions, state = act(env, np.random.default_rng(0)), env.get_state()
    env.send(actions)
    env.close()
    for call in (env.recv, env.reset, lambda: env.step(actions), lambda: env.set_state(state)):
        with pytest.raises(ClosedEnvironmentError):
            call()
    assert not [thread for thread in engine_threads() if thread in env._workers._threads]


def test_divergence_in_the_last_substep_is_found_before_it_is_observed(
    make_env, act, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves its log file where it runs
    env = make_env("push-v3")
    first, _ = env.reset()
    env._simulation._rigs["frame_skip"] = 1  # so that the first substep is the last
    data = env._simulation.data[0]
    upwards = env._simulation.model_of(0).joint("objjoint").dofadr[0] + 2
    # Sound by MuJoCo's measure, which is 1e10; after one substep no more.
    data.qvel[upwards] = 0.999e10
    data.qfrc_applied[upwards] = 0.9e10 * data.qM[env._simulation.model_of(0).dof_Madr[upwards]]
    *_, truncated, infos = env.step(act(env, np.random.default_rng(0)))
    assert truncated[0]
    assert infos["diverged"][0]
    np.testing.assert_array_equal(infos["final_obs"][0], first[0])


@pytest.mark.parametrize("num_threads", [1, 3])
def test_environments_at_rest_cost_nothing_and_change_nothing_for_the_others(
    make_env, act, num_threads
):
    """Of 30 environments a task, 20 have a second goal to play of 50, 10 have not."""
    options = {"envs_per_task": 30, "steps": 3, "num_threads": num_threads}
    env, twin = make_env(goals="once", **options), make_env(goals="sequential", **options)
    official = make_env("reach-v3", goals="once", envs_per_task=30, steps=3, official=True)
    stepped = []

    def clocks():
        return np.array([data.time for data in env._simulation.data])

    np.testing.assert_array_equal(env.reset()[0], twin.reset()[0])
    official.reset()
    generator = np.random.default_rng(0)
    second_goal, seen = np.tile(np.arange(30) < 20, 3), []
    for step in range(8):
        actions = act(env, generator)
        before = clocks()
        here, there = env.step(actions), twin.step(actions)
        stepped.append((clocks() != before).sum())
        by_official = official.step(actions[:30])
        moving = second_goal if step >= 3 else np.ones(90, bool)
        moving = np.zeros(90, bool) if step >= 6 else moving
        for ours, theirs in zip((*here[1:4], here[4]["final_obs"]), _fields(there), strict=True):
            np.testing.assert_array_equal(ours[moving], theirs[moving])
        assert not here[1][~moving].any()
        assert not here[3][~moving].any()
        assert not here[4]["success"][~moving].any()
        np.testing.assert_array_equal(by_official[1], here[1][:30])
        np.testing.assert_array_equal(by_official[3], here[3][:30])
        seen.append(here[0])
        if step > 2:
            np.testing.assert_array_equal(here[0][~moving], seen[-2][~moving])
    assert stepped == [90] * 3 + [60] * 3 + [0] * 2
    env.reset()
    assert env.step(actions)[1].all()


def _fields(step):
    return (*step[1:4], step[4]["final_obs"])


@pytest.mark.filterwarnings("ignore:Constant")  # the scripted policy's own
def test_success_ends_an_episode_where_it_shall(make_env):
    ends, goes_on = (
        make_env("reach-v3", envs_per_task=4, goals="once", ends_with_success=flag)
        for flag in (True, False)
    )
    policy = SawyerReachV3Policy()
    observations, _ = ends.reset()
    np.testing.assert_array_equal(goes_on.reset()[0], observations)
    finished = np.zeros(4, bool)
    while not finished.all():
        actions = np.array([policy.get_action(row[:39]) for row in observations], np.float32)
        observations, _, terminated, truncated, infos = ends.step(actions)
        _, _, *ended, reference = goes_on.step(actions)
        assert not np.any(ended)
        assert not truncated.any()
        going_on = ~finished
        success = reference["success"][going_on]
        np.testing.assert_array_equal(terminated[going_on], success)
        np.testing.assert_array_equal(infos["success"][going_on], success)
        np.testing.assert_array_equal(infos["_final_obs"], terminated)
        assert (observations != infos["final_obs"]).any(axis=1)[terminated].all()
        finished |= terminated
