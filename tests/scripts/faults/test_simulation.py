"""What a process does whose simulation fails; the rest is in tests/envs/engine/test_failures.py."""

import signal
import time
from pathlib import Path

import numpy as np

from mtrl.checkpoint import load_latest


def test_a_simulation_that_hangs_is_replaced_and_the_run_goes_on(
    start, endless, tmp_path, read_metrics, reached, checkpoints, assert_gapless
):
    often = ["--reward-version", "v1", "--benchmark", "reach-v3", "--eval-every", 10**9]
    script = start(Path(__file__).with_name("hanging.py"), *endless, *often)
    script.wait_until(lambda: reached() >= 400)
    script.signal(signal.SIGTERM)
    began = time.monotonic()
    result = script.wait()
    assert result.code == 143
    assert time.monotonic() - began < 20
    assert "Traceback" not in result.err
    assert "the simulation of reach-v3 failed (TimeoutError" in result.err
    metrics = read_metrics(tmp_path / "run")
    assert_gapless(metrics)
    assert 1 <= metrics[-1]["train/dropped_episodes/reach-v3"] <= 2
    assert checkpoints(tmp_path / "run")[-1] >= reached()


def test_a_simulation_that_diverges_costs_its_episode_and_the_run_ends_as_usual(
    start_own_task, tmp_path, read_metrics, assert_gapless
):
    total = ["--total-steps", 160, "--eval-every", 160]
    result = start_own_task("velocity=1e12 velocity=nan", *total).wait()
    assert result.code == 0, result.err
    for count in (1, 2):
        line = f"the simulation of own-reach diverged and was reset ({count} times in all)"
        assert result.err.count(line) == 1
    metrics = read_metrics(tmp_path / "run")
    assert_gapless(metrics)
    trained = [line for line in metrics if "time/env_steps_per_second" in line]
    assert [line["train/dropped_episodes/own-reach"] for line in trained] == [2, 2]
    assert metrics[-1]["eval/return_until_success/own-reach"] > 0
    replay = load_latest(tmp_path / "run" / "checkpoints").state["replay"]
    assert replay["begun"].tolist() == [160 - 2]
    # The hand is within a metre of the origin, and half a kilometre away after such a step.
    assert np.abs(replay["observations"].numpy()).max() < 2


def test_a_simulation_that_diverges_in_each_step_ends_the_run(start_own_task, tmp_path):
    result = start_own_task("gravity=1e30").wait()
    assert result.code == 1
    assert "Traceback" not in result.err
    (error,) = (line for line in result.err.splitlines() if line.startswith("error: "))
    lost = "an environment of own-reach had 100 steps in a row that were lost as its simulation"
    assert f"{lost} diverged, up to step 120; the state it happens in is in" in error
    assert load_latest(tmp_path / "run" / "faults").label.env_steps == 120


def test_a_simulation_that_raises_is_replaced_until_the_tenth_time(
    start_own_task, tmp_path, read_metrics, checkpoints, reached
):
    path = tmp_path / "run"
    often = ["--log-every", 20, "--checkpoint-every", 20]
    result = start_own_task("raise " * 10, *often).wait()
    assert result.code == 1
    assert "Traceback" not in result.err
    failed = 'the simulation of own-reach failed (ZeroDivisionError("in a reward of one\'s own"))'
    assert result.err.count(f"WARNING: {failed} and is replaced; its episodes are dropped") == 9
    error = result.err.splitlines()[-1]
    assert error == f"error: {failed}, 10 times in all: add `--resume` to go on"
    counts = [line["train/dropped_episodes/own-reach"] for line in read_metrics(path)]
    assert counts == list(range(1, 10))
    script = start_own_task("", *often, "--resume")
    script.wait_until(lambda: reached() >= 240)
    script.signal(signal.SIGTERM)
    assert script.wait().code == 143
    assert checkpoints(path)[-1] >= reached()
    steps = [line["progress/env_steps"] for line in read_metrics(path)]
    assert steps == list(range(20, 20 * len(steps) + 1, 20))
