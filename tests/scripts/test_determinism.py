"""The same command gives the same metrics, timings aside, and says the same of the same run."""

import pytest

from mtrl.checkpoint import load_latest
from mtrl.state_tree import fingerprint

REACH = ("--benchmark", "reach-v3", "--total-steps", 400, "--eval-every", 10**6)


@pytest.fixture
def ending(read_metrics):
    """Return a run's metrics and the rest of what it ended with, timings aside."""

    def ending(path):
        state = load_latest(path / "checkpoints").state
        del state["progress"]["seconds"]
        del state["metrics"]  # a digest of lines that hold timings; they are compared themselves
        del state["circumstances"]
        return fingerprint(state), [
            {name: value for name, value in line.items() if not name.startswith("time/")}
            for line in read_metrics(path)
        ]

    return ending


def test_simulation_threads_change_nothing_and_the_same_command_repeats(
    run, small, tmp_path, ending
):
    endings = []
    for name, threads in (("one", 1), ("again", 1), ("three", 3)):
        options = [*small, *REACH, "--simulation-threads", threads, "--wandb", "disabled"]
        result = run("train_mt10", *options, "--run-dir", name)
        assert result.code == 0, result.err
        endings.append(ending(tmp_path / name))
    assert endings[0] == endings[1] == endings[2]
    assert len(endings[0][1]) >= 5
