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
STEP_TIME = 0.0125  # what a step adds to MuJoCo's clock


@pytest.fixture
def make(monkeypatch):
    """Make environments that give up on a step after a second."""
    monkeypatch.setattr(vector, "STEP_SECONDS", 1.0)
    made = []

    def make(**options):
        options = {"seed": 1, "envs_per_task": N, "num_threads": 2} | options
        made.append(envs.make_vec(TASKS, **options))
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


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_chunk_that_raises_costs_its_own_rows_alone(make, monkeypatch, caplog, num_threads):
    expected = play(make(num_threads=num_threads))
    step_chunks, step_now, raised, lost = simulation.step_chunks, [0], threading.Lock(), []

    def fail_once(chunks, next_chunk, *arguments):
        if step_now[0] == FAULT and raised.acquire(blocking=False):
            lost.append(fetch_add(next_chunk, 1))
            raise ZeroDivisionError("in a chunk")
        step_chunks(chunks, next_chunk, *arguments)

    made = make(num_threads=num_threads)
    monkeypatch.setattr(simulation, "step_chunks", fail_once)
    outcomes = play(made, between=lambda step: step_now.__setitem__(0, step))
    rows = (
        range(*made._simulation._chunks[lost[0]]) if lost[0] < len(made._simulation._chunks) else []
    )
    assert_only_reach_was_lost(outcomes, expected, rows)
    assert made.num_failures == len(list(rows[:1]))


def interrupt_once(monkeypatch, owner, name, *, after):
    """Have a method raise KeyboardInterrupt, once, before or after it has done its work."""
    method = getattr(owner, name)

    def interrupted(*arguments, **options):
        monkeypatch.setattr(owner, name, method)
        if after:
            method(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(
    ("part", "name", "after"),
    [
        *[("_workers", "start", after) for after in (False, True)],
        *[("_workers", "wait", after) for after in (False, True)],
        ("_simulation", "unfinished_rows", True),
    ],
)
@pytest.mark.parametrize("waits", [False, True])
def test_an_interrupted_step_is_whole_or_marked_as_lost(
    make, monkeypatch, part, name, after, waits
):
    """Wherever Ctrl-C strikes, nothing that has not been stepped passes for a step."""
    made, twin = make(), make()
    before, _ = made.reset()
    twin.reset()
    actions = np.full((K * N, 4), 0.5, np.float32)
    interrupt_once(monkeypatch, getattr(made, part), name, after=after)
    with pytest.raises(KeyboardInterrupt):
        made.step(actions) if waits else (made.send(actions), made.recv())
    with pytest.raises(RuntimeError, match="recv"):
        made.get_state()
    observations, *_, infos = made.recv()
    whole, *_ = twin.step(actions)
    for row, lost in enumerate(infos["diverged"]):
        expected = before if lost else whole
        np.testing.assert_array_equal(infos["final_obs"][row], expected[row])
        if not lost:
            np.testing.assert_array_equal(observations[row], whole[row])
    assert not infos["diverged"].any() or (name, after) == ("start", False)
    made.step(actions)


def test_an_interrupted_replacement_is_taken_up_again(make, monkeypatch):
    made = make()
    before, _ = made.reset()
    actions = np.zeros((K * N, 4), np.float32)
    step_chunks = simulation.step_chunks

    def fail(*arguments):
        raise MemoryError("now")

    monkeypatch.setattr(simulation, "step_chunks", fail)
    made.send(actions)
    interrupt_once(monkeypatch, made, "set_state", after=False)
    with pytest.raises(KeyboardInterrupt):
        made.recv()
    monkeypatch.setattr(simulation, "step_chunks", step_chunks)
    *_, infos = made.recv()
    assert infos["diverged"].all()
    np.testing.assert_array_equal(infos["final_obs"], before)
    assert not made.step(actions)[-1]["diverged"].any()


def test_a_simulation_that_fails_again_and_again_ends_the_training(make, monkeypatch):
    made = make()

    def fail(*arguments):
        raise MemoryError("always")

    monkeypatch.setattr(simulation, "step_chunks", fail)
    monkeypatch.setattr(vector, "MAX_FAILURES", 3)
    with pytest.raises(RunError, match=r"MemoryError.*3 times in all: add `--resume`"):
        play(made)
    assert made.num_failures == 3


def test_a_row_at_rest_that_fails_does_so_once(make, monkeypatch):
    """It shares a chunk with the rows around it, and has no episode that could be lost."""
    made = make(envs_per_task=3, num_threads=1, goals="once")
    step_chunks = simulation.step_chunks
    made.reset()
    limit = made._simulation.data[0].time + 4.5 * STEP_TIME

    def fail_where_row_0_is_late(chunks, next_chunk, *arguments):
        its_turn = fetch_add(next_chunk, 0) == 0
        if its_turn and made._simulation.data[0].time > limit:
            fetch_add(next_chunk, 1)
            raise ZeroDivisionError("in a chunk")
        step_chunks(chunks, next_chunk, *arguments)

    monkeypatch.setattr(simulation, "step_chunks", fail_where_row_0_is_late)
    made._resting[1] = True  # as if its episodes had been short
    lost = []
    for _ in range(9):
        _, rewards, _, truncated, infos = made.step(np.zeros((6, 4), np.float32))
        lost.append(np.flatnonzero(infos["diverged"]).tolist())
        assert not truncated[1]
        assert rewards[1] == 0
    assert lost == [[]] * 5 + [[0, 2]] + [[]] * 3
    assert made.num_failures == 1
