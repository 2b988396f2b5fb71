"""What a process does whose numbers go wrong; the rest is in tests/mtrl/test_guard.py."""

from pathlib import Path

import torch

from mtrl.checkpoint import load_latest


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
