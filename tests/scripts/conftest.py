"""Scripts are run as a user runs them: in a process of their own, in an empty directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from mtrl.logging import JsonlLogger

SCRIPTS = Path(__file__).parents[2] / "scripts"
SMALL = (
    *("--benchmark", "toy", "--envs-per-task", "2", "--eval-envs-per-task", "50"),
    *("--critic-width", "8", "--critic-depth", "1", "--actor-width", "8", "--actor-depth", "1"),
    *("--batch-size", "4", "--replay-capacity", "500", "--warmup-steps", "80"),
    *("--update-ratio", "0.1", "--log-every", "80", "--eval-every", "160"),
    *("--checkpoint-every", "160", "--threads", "1", "--device", "cpu", "--precision", "fp32"),
    *("--compile", "off"),
)
PATIENCE = 550  # seconds; only a hang takes that long, however busy the machine is


@dataclass
class Result:
    """How a script ended."""

    code: int
    out: str
    err: str
    cpu_seconds: float


class Script:
    """A script under way; killed, should a test leave it behind."""

    def __init__(self, name, options, directory, *, before=(), environment=None, terminal=None):
        """Start it: `before` goes in front of the command, `terminal` is its standard streams."""
        number = len(list(directory.glob(".err*")))
        self._out, self._err = directory / f".out{number}", directory / f".err{number}"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        script = name if isinstance(name, Path) else SCRIPTS / f"{name}.py"
        with self._out.open("w") as out, self._err.open("w") as err:
            self._process = subprocess.Popen(
                [*before, sys.executable, script, *map(str, options)],
                cwd=directory,
                env={**inherited, "HOME": str(directory), "COLUMNS": "80", **(environment or {})},
                stdin=terminal or subprocess.DEVNULL,
                stdout=terminal or out,
                stderr=terminal or err,
            )
        self.pid = self._process.pid
        self._result = None

    def wait(self):
        """Wait for the end and return how it came."""
        deadline = time.monotonic() + PATIENCE
        while self._result is None:
            # Unlike `Popen.wait`, this tells the processor time of this one process.
            pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
            if pid:
                self._process.returncode = code = os.waitstatus_to_exitcode(status)
                out, err = self._out.read_text(), self._err.read_text()
                self._result = Result(code, out, err, usage.ru_utime + usage.ru_stime)
            assert time.monotonic() < deadline, f"it hangs; so far: {self._err.read_text()}"
            time.sleep(0.02)
        return self._result

    def signal(self, number):
        self._process.send_signal(number)

    def wait_until(self, condition):
        """Wait until a condition on what it does holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self._process.poll() is None, f"it ended early: {self._err.read_text()}"
            assert time.monotonic() < deadline, f"in vain; so far: {self._err.read_text()}"
            time.sleep(0.02)

    def said(self, text):
        """Tell whether a text has appeared among its messages."""
        return text in self._err.read_text()

    def close(self):
        if self._result is None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def start(tmp_path):
    """Start a script in `tmp_path` and return a `Script`."""
    started = []

    def start(name, *options, **how):
        started.append(Script(name, options, tmp_path, **how))
        return started[-1]

    yield start
    for script in started:
        script.close()


@pytest.fixture
def run(start):
    """Run a script in `tmp_path` to its end and return a `Result`."""
    return lambda name, *options, **how: start(name, *options, **how).wait()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Variables of an environment in which what was compiled once stays so."""
    return {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="session")
def small():
    """Options of a training that takes a second."""
    return SMALL


@pytest.fixture(scope="session")
def _finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished")
    options = [*SMALL, "--total-steps", "400", "--wandb", "offline"]
    result = Script("train_mt10", options, directory).wait()
    assert result.code == 0, result.err
    (path,) = (directory / "runs").iterdir()
    return path, result


@pytest.fixture
def finished(_finished, tmp_path):
    """Give a copy of a finished run of 400 steps, as `tmp_path/run`, and its `Result`."""
    path, result = _finished
    return shutil.copytree(path, tmp_path / "run", symlinks=True), result


@pytest.fixture
def make_run(tmp_path):
    """Make a run directory that holds a curve: success rates of some tasks at some steps."""

    def make(
        name,
        success,
        steps=(1000, 2000),
        *,
        tasks=("a", "b"),
        minutes=None,
        config=None,
        machine=None,
    ):
        path = tmp_path / name
        path.mkdir(parents=True)
        logger = JsonlLogger(path / "metrics.jsonl")
        minutes = minutes or [step / 1000 for step in steps]
        for step, minute, rates in zip(steps, minutes, success, strict=True):
            progress = {"progress/env_steps": step, "time/seconds": 60.0 * minute}
            logger.log(progress | {"train/success_rate/a": 0.5})
            rates = dict(zip(tasks, rates, strict=True))
            logger.log(progress | {f"eval/success_rate/{k}": rate for k, rate in rates.items()})
        logger.close()
        if config is not None:
            versions = {"metaworld": "3.1.1"}
            machine = {"cpu": "an abacus", "cores": 2} | (machine or {})
            record = {"config": config, "versions": versions, "machine": machine}
            (path / "config.json").write_text(json.dumps(record))
        return path

    return make


@pytest.fixture(scope="session")
def read_metrics():
    """Read the complete lines of a run's metrics."""

    def read(run_dir):
        path = run_dir / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    return read


@pytest.fixture(scope="session")
def snapshot():
    """Map every file below a directory to its content."""
    return lambda directory: {
        path.relative_to(directory): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith((".out", ".err"))
    }
