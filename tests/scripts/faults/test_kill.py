"""A training that is killed again and again ends with the bytes of one that was left in peace."""

import random
import signal
import time

import pytest

from mtrl.checkpoint import load_latest
from mtrl.state_tree import fingerprint

KILLS = 10


@pytest.fixture
def ending(read_metrics):
    """Return all that a run ended with, timings aside."""

    def ending(path):
        state = load_latest(path / "checkpoints").state
        del state["progress"]["seconds"]
        del state["metrics"]  # a digest of lines that hold timings; they are compared themselves
        metrics = [
            {name: value for name, value in line.items() if not name.startswith("time/")}
            for line in read_metrics(path)
        ]
        return fingerprint(state), metrics

    return ending


def test_killed_ten_times_a_run_ends_with_the_same_bytes(
    start, run, endless, small, tmp_path, checkpoints, ending
):
    path, generator = tmp_path / "run", random.Random(0)

    def unfinished():
        return {entry.stat().st_ctime_ns for entry in path.glob("checkpoints/.incomplete_*")}

    killed_in_a_save = 0
    for life in range(KILLS):
        script = start("train_mt10", *endless, *(["--resume"] if life else []))
        before, left_behind = checkpoints(path), unfinished()
        script.wait_until(lambda before=before: checkpoints(path)[-1:] > before[-1:])
        if life % 2:
            deadline = time.monotonic() + generator.uniform(0, 0.5)
            script.wait_until(lambda deadline=deadline: time.monotonic() >= deadline)
        else:
            script.wait_until(lambda left=left_behind: not unfinished() <= left)
        script.signal(signal.SIGKILL)
        assert script.wait().code == -signal.SIGKILL
        killed_in_a_save += not unfinished() <= left_behind
        assert "skipped" not in script.wait().err
    assert killed_in_a_save

    total = ["--total-steps", checkpoints(path)[-1] + 240, "--wandb", "disabled"]
    assert run("train_mt10", *small, *total, "--run-dir", path, "--resume").code == 0
    assert run("train_mt10", *small, *total, "--run-dir", tmp_path / "alone").code == 0
    assert ending(path) == ending(tmp_path / "alone")
