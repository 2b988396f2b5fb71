"""Simulations that fail or hang in real worker threads, by code that really does."""

import threading

import numpy as np
import pytest
from metaworld import env_dict

import envs
from envs.engine import simulation, vector
from envs.engine.kernels import step_rows
from envs.engine.native import fetch_add
from mtrl.errors import RunError

TASKS = ("reach-v3", "drawer-close-v3")
K, N = len(TASKS), 2
STEPS = 6
FAULT = 3  # the step in which reach-v3 goes wrong


@pytest.fixture
def make(monkeypatch):
    """Make environments that give up on a step after a second."""
    monkeypatch.setattr(vector, "STEP_SECONDS", 1.0)
    made = []

    def make(**options):
        made.append(envs.make_vec(TASKS, seed=1, envs_per_task=N, num_threads=2, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def released():
    """What a hanging thread waits for; set at the latest when the test has ended."""
    event = threading.Event()
    yield event
    event.set()


def play(made, steps=STEPS, between=lambda step: None):
    """Step with fixed random actions; return what came back of each step."""
    generator = np.random.default_rng(1)
    made.reset()
    outcomes = []
    for step in range(steps):
        between(step)
        actions = generator.uniform(-1, 1, (K * N, 4)).astype(np.float32)
        made.send(actions)
        observations, rewards, _, truncated, infos = made.recv()
        outcomes.append((observations, rewards, truncated, infos))
    return outcomes


def assert_only_reach_was_lost(outcomes, expected, lost):
    for step, (ours, undisturbed) in enumerate(zip(outcomes, expected, strict=True)):
        for array, reference in zip(ours[:3], undisturbed[:3], strict=True):
            assert np.array_equal(array[N:], reference[N:])
            if step < FAULT:
                assert np.array_equal(array, reference)
        assert ours[3]["diverged"].tolist() == [step == FAULT and row in lost for row in range(4)]
        assert ours[2].tolist() == ours[3]["diverged"].tolist()
        assert np.isfinite(ours[0]).all()
    before, broken = outcomes[FAULT - 1], outcomes[FAULT]
    for row in lost:
        assert np.array_equal(broken[3]["final_obs"][row], before[0][row])
        assert broken[1][row] == 0


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_an_official_reward_that_goes_wrong_costs_its_own_task_alone(
    make, monkeypatch, caplog, released, how
):
    expected = play(make(reward_version="v1"))
    official = env_dict.ENV_CLS_MAP["reach-v3"]
    evaluate, faults = official.evaluate_state, []

    def go_wrong(env, *arguments):
        if not faults and going_wrong.is_set():
            faults.append(env)
            if how == "raises":
                raise ZeroDivisionError("in a reward")
            released.wait()
        return evaluate(env, *arguments)

    monkeypatch.setattr(official, "evaluate_state", go_wrong)
    going_wrong = threading.Event()
    made = make(reward_version="v1")

    def between(step):
        if step == FAULT:
            going_wrong.set()
        if step == FAULT + 1:
            released.set()  # the late thread writes where nobody looks any more

    outcomes = play(made, between=between)
    # Raising costs one row; after a hang nobody evaluates those behind it, which here are all.
    if how == "raises":
        assert_only_reach_was_lost(outcomes, expected, lost=[0])
        assert "ZeroDivisionError" in caplog.text
    else:
        assert outcomes[FAULT][3]["diverged"].all()
        assert "took too long" in caplog.text
    assert "reach-v3" in caplog.text
    assert made.num_failures == 1
    assert made.num_diverged == (1 if how == "raises" else K * N)


def test_a_kernel_that_hangs_is_left_behind_and_its_late_return_changes_nothing(
    make, monkeypatch, caplog, released
):
    expected = play(make())
    step_chunks, hung, returned = simulation.step_chunks, threading.Event(), threading.Event()

    def hang(chunks, next_chunk, *arguments):
        if step_now[0] == FAULT and entering.acquire(blocking=False):
            lost.append(fetch_add(next_chunk, 1))
            hung.set()
            released.wait()
            step_rows(*chunks[lost[0]], *arguments[1:])
            step_chunks(chunks, next_chunk, *arguments)
            returned.set()
            return
        if step_now[0] == FAULT:
            hung.wait()  # else this thread may leave no chunk to hang in
        step_chunks(chunks, next_chunk, *arguments)

    entering = threading.Lock()
    lost = []
    step_now = [0]
    made = make()
    monkeypatch.setattr(simulation, "step_chunks", hang)

    def between(step):
        step_now[0] = step
        if step == FAULT + 1:
            released.set()
            assert returned.wait(5)

    outcomes = play(made, between=between)
    assert hung.is_set()
    rows = range(*made._simulation._chunks[lost[0]])
    assert set(rows) <= set(range(N))
    assert_only_reach_was_lost(outcomes, expected, rows)
    assert "reach-v3 failed (TimeoutError" in caplog.text


def test_a_simulation_that_fails_again_and_again_ends_the_training(make, monkeypatch):
    made = make()

    def fail(*arguments):
        raise MemoryError("always")

    monkeypatch.setattr(simulation, "step_chunks", fail)
    monkeypatch.setattr(vector, "MAX_FAILURES", 3)
    with pytest.raises(RunError, match=r"MemoryError.*3 times in all: add `--resume`"):
        play(made)
    assert made.num_failures == 3
