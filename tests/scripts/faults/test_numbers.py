"""What a process does whose numbers go wrong; the rest is in tests/mtrl/test_guard.py."""

import signal
from pathlib import Path

import pytest
import torch

from mtrl.checkpoint import load_latest
from mtrl.guard import first_not_finite


def stop(script):
    """Stop a training that goes on whatever happens, and return how it ended."""
    script.signal(signal.SIGTERM)
    result = script.wait()
    assert result.code == 143
    assert "Traceback" not in result.err
    return result


def warnings(result):
    return [line for line in result.err.splitlines() if "finite" in line]


def test_what_a_task_gives_that_is_not_finite_is_kept_out_named_and_counted(
    start_own_task, tmp_path, reached, read_metrics, assert_gapless
):
    script = start_own_task("reward=nan observation=-inf")
    script.wait_until(lambda: reached() >= 160)
    reward, observation = warnings(stop(script))
    assert reward.startswith("WARNING: reward of own-reach is not finite at step 19: such steps")
    assert observation.startswith("WARNING: observation of own-reach is not finite at step 39: ")
    metrics = read_metrics(tmp_path / "run")
    assert_gapless(metrics)
    assert metrics[0]["train/dropped_episodes/own-reach"] == 2
    assert metrics[-1]["gradients/critic/skipped"] == 0
    assert metrics[-1]["progress/updates"] >= (160 - 10) * 0.1 - 1
    state = load_latest(tmp_path / "run" / "checkpoints").state
    assert first_not_finite({**state["agent"], **state["replay"]}) is None
    assert state["progress"]["env_steps"] - state["replay"]["begun"][0] == 2, "two steps left out"


@pytest.mark.parametrize(
    ("reward", "quantity"),
    [("1e30", "train/critic_loss"), ("1e20", "gradients/critic/norm")],
)
def test_a_loss_or_gradient_that_overflows_is_named_and_training_goes_on(
    start_own_task, tmp_path, reached, checkpoints, reward, quantity
):
    path = tmp_path / "run"
    script = start_own_task(f"reward={reward}", "--update-ratio", 1)
    script.wait_until(lambda: script.said(f"WARNING: {quantity} of own-reach was not finite in "))
    step = reached()
    script.wait_until(lambda: reached() >= step + 160 and checkpoints(path)[-1:] >= [step])
    assert "up to step " in warnings(stop(script))[0]
    state = load_latest(path / "checkpoints").state
    assert first_not_finite(state["agent"]) is None


def test_a_task_that_stays_broken_ends_the_run_with_all_that_led_to_it(start_own_task, tmp_path):
    result = start_own_task("reward=nan", FOR_GOOD="1").wait()
    assert result.code == 1
    assert "Traceback" not in result.err
    (error,) = (line for line in result.err.splitlines() if line.startswith("error: "))
    assert "an environment of own-reach had 100 steps in a row that were not finite" in error
    assert "up to step 119" in error
    fault = load_latest(tmp_path / "run" / "faults")
    assert fault.label.env_steps == 119
    assert str(fault.path.relative_to(tmp_path)) in error
    assert first_not_finite({**fault.state["agent"], **fault.state["replay"]}) is None


def test_a_poisoned_weight_ends_the_run_with_all_that_is_needed_to_look_into_it(
    run, endless, tmp_path, checkpoints
):
    path = tmp_path / "run"
    often = ["--update-ratio", 1, "--eval-every", 10**9, "--checkpoint-every", 80]
    result = run(Path(__file__).with_name("going_wrong.py"), *endless, *often)
    assert result.code == 1
    assert "Traceback" not in result.err
    assert "no checkpoint is made of that" in result.err
    (error,) = (line for line in result.err.splitlines() if line.startswith("error: "))
    assert "train/critic_loss of toy-reach, toy-left, toy-mirror, toy-right was not" in error
    assert "is not finite); the state it happens in is in" in error
    good = load_latest(path / "checkpoints")
    assert all(tensor.isfinite().all() for tensor in good.state["agent"]["critics"].values())
    fault = load_latest(path / "faults")
    assert fault.state["progress"]["env_steps"] > good.state["progress"]["env_steps"]
    assert fault.state["fault"] in error
    assert fault.state["replay"].keys() == good.state["replay"].keys()
    assert any(tensor.isnan().any() for tensor in fault.state["agent"]["critics"].values())
    weights = good.state["agent"]["critics"]
    assert all(isinstance(tensor, torch.Tensor) for tensor in weights.values())
    more = ["--resume", "--total-steps", (good.state["progress"]["env_steps"] // 80 + 2) * 80]
    assert run("train_mt10", *endless, *often, *more).code == 0
