"""Faults are done to a real process, and nothing of it may be left behind."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from mtrl.seal import seal

ENDLESS = ("--total-steps", str(10**9))


@pytest.fixture
def endless(small, tmp_path):
    """Options of a training that goes on until it is stopped, in `tmp_path/run`."""
    return [*small, *ENDLESS, "--wandb", "disabled", "--run-dir", tmp_path / "run"]


@pytest.fixture
def reached(read_metrics, tmp_path):
    """Tell how many environment steps the metrics of `tmp_path/run` tell of."""

    def reached(run_dir=None):
        lines = read_metrics(run_dir or tmp_path / "run")
        return max((line["progress/env_steps"] for line in lines), default=0)

    return reached


@pytest.fixture(scope="session")
def checkpoints():
    """List the steps of a run's checkpoints, oldest first."""
    return lambda run_dir: sorted(
        int(path.name.removeprefix("step_")) for path in run_dir.glob("checkpoints/step_*")
    )


@pytest.fixture(scope="session")
def edit_config():
    """Change the configuration that a run stored, and the digest with it."""

    def edit_config(run_dir, change):
        file = run_dir / "config.json"
        record = json.loads(file.read_text())
        change(record["config"])
        del record["sha256"]
        file.write_text(json.dumps(seal(record)))

    return edit_config


@pytest.fixture
def disk(tmp_path):
    """A file system of two megabytes of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system to fill needs the right to mount one")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture(autouse=True)
def no_orphans(tmp_path):
    """Check that no process is left that was started in a test's directory."""
    yield
    if not Path("/proc/self").exists():
        return
    left = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == tmp_path:
                left[entry.name] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    assert left == {}


@pytest.fixture(scope="session")
def assert_gapless():
    """Check that metrics have no missing and no doubled line."""

    def check(metrics, every=80):
        steps = [
            line["progress/env_steps"] for line in metrics if "time/env_steps_per_second" in line
        ]
        assert steps == list(range(every, every * len(steps) + 1, every))

    return check


@pytest.fixture
def start_own_task(start, small, tmp_path, compiled):
    """Start training on a task that goes wrong as a text says; see own_task.py."""

    def start_own_task(faults, *options, **environment):
        own = ["--envs-per-task", 1, "--warmup-steps", 10, "--threads", 1]
        return start(
            Path(__file__).with_name("own_task.py"),
            *[*small, *ENDLESS, *own, "--benchmark", "own-reach", "--eval-every", 10**9],
            *["--wandb", "disabled", "--run-dir", tmp_path / "run", *options],
            environment={"FAULTS": faults, **environment, **compiled},
        )

    return start_own_task
