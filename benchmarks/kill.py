"""Kill training processes at random moments; what they end with must be what one alone ends with.

    python benchmarks/kill.py                         # 200 kills, toy tasks
    python benchmarks/kill.py --task reach-v3 --kills 50

A life is a process that trains, or goes on training, until SIGKILL ends it: after a random time, or
every other time at a random moment of a save. A run takes as many lives as it needs; then all of
its state and its metrics (timings aside) are compared with those of a run that lived once.

A life is forked from a process that has the libraries loaded but has never trained: starting Python
takes longer than most lives. `tests/scripts/faults/test_kill.py` starts the script itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from agents import SACConfig
from mtrl.checkpoint import load_latest
from mtrl.files import write_json_atomic
from mtrl.logging import read_metrics
from mtrl.provenance import library_versions, machine
from mtrl.state_tree import fingerprint
from scripts.config import Config
from scripts.training import train

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """How often to kill what."""

    kills: int = 200
    """SIGKILLs in all."""
    task: str = "toy"
    """toy, or a Meta-World task, which is simulated by the engine."""
    seed: int = 0
    """Of the moments."""
    longest_life: float = 4.0
    """Seconds until the last moment at which a life ends."""


@dataclass
class Deaths:
    """How lives ended."""

    killed: int = 0
    in_a_save: int = 0
    runs: int = 0
    survived: int = 0
    skipped_checkpoints: int = 0


def main() -> int:
    """Kill, compare and report."""
    options = tyro.cli(Options)
    generator = random.Random(options.seed)
    directory = Path(tempfile.mkdtemp(prefix="mtrl-kill-"))
    expected = final_bytes(live_once(configure(options.task, directory / "alone")))
    deaths, different = Deaths(), 0
    while deaths.killed < options.kills:
        deaths.runs += 1
        config = configure(options.task, directory / f"run_{deaths.runs}")
        different += final_bytes(live_and_die(config, options, generator, deaths)) != expected
    report(options, deaths, different)
    shutil.rmtree(directory)
    return int(different > 0 or deaths.skipped_checkpoints > 0)


def configure(task: str, run_dir: Path) -> Config:
    """Return a training that saves every few steps and ends within seconds."""
    tiny = SACConfig(critic_width=32, critic_depth=2, actor_width=32, actor_depth=2)
    return Config(
        benchmark=(task,),
        total_steps=4_800 if task == "toy" else 2_400,
        warmup_steps=200,
        envs_per_task=2,
        batch_size=8,
        update_ratio=0.25,
        replay_capacity=1_000,
        log_every=96,
        eval_every=1_600 if task == "toy" else 10**9,
        eval_envs_per_task=50,
        checkpoint_every=160 if task == "toy" else 100,
        threads=1,
        device="cpu",
        precision="fp32",
        wandb="disabled",
        agent=tiny,
        run_dir=run_dir,
    )


def live_once(config: Config) -> Path:
    """Train in one go; return the run's directory.

    Raises:
        RuntimeError: If the training failed.
    """
    assert config.run_dir is not None
    _end(_begin(config), config.run_dir)
    return config.run_dir


def live_and_die(
    config: Config, options: Options, generator: random.Random, deaths: Deaths
) -> Path:
    """Train in many lives; return the run's directory."""
    assert config.run_dir is not None
    run_dir = config.run_dir
    checkpoints = run_dir / "checkpoints"
    while deaths.killed < options.kills:
        left_behind = _unfinished(checkpoints)
        pid = _begin(config)
        deadline = time.monotonic() + generator.uniform(0.0, options.longest_life)
        if generator.random() < 0.5:
            while _unfinished(checkpoints) <= left_behind and _lives(pid):
                time.sleep(0.001)
            deadline = time.monotonic() + generator.uniform(0.0, 0.2)
        while time.monotonic() < deadline and _lives(pid):
            time.sleep(0.001)
        if not _lives(pid):
            break
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        deaths.killed += 1
        deaths.in_a_save += not _unfinished(checkpoints) <= left_behind
        config = _resumed(config)
    else:
        _end(_begin(config), run_dir)
    deaths.survived += 1
    deaths.skipped_checkpoints += _log(run_dir).read_text().count("skipped a checkpoint")
    return run_dir


def final_bytes(run_dir: Path) -> str:
    """Return a digest of all that a run ended with, timings aside."""
    state = load_latest(run_dir / "checkpoints").state
    del state["progress"]["seconds"]
    del state["metrics"]  # a digest of lines that hold timings; they are compared themselves
    rows = [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in read_metrics(run_dir / "metrics.jsonl")
    ]
    return hashlib.sha256(f"{fingerprint(state)} {json.dumps(rows)}".encode()).hexdigest()


def report(options: Options, deaths: Deaths, different: int) -> None:
    """Print and keep the result."""
    table = Table(title=f"{options.task}: training processes killed")
    table.add_column("")
    table.add_column("count", justify="right")
    rows = {
        "SIGKILLs": deaths.killed,
        "of these, while a checkpoint was being written": deaths.in_a_save,
        "runs that came to their end": deaths.survived,
        "of these, not equal to the undisturbed one": different,
        "checkpoints that could not be read": deaths.skipped_checkpoints,
    }
    for name, count in rows.items():
        table.add_row(name, str(count))
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    command = f"python benchmarks/kill.py --task {options.task} --kills {options.kills}"
    write_json_atomic(
        RESULTS / f"kill_{options.task}.json",
        {"command": command, **rows, "versions": library_versions(), "machine": machine()},
    )


def _begin(config: Config) -> int:
    assert config.run_dir is not None
    pid = os.fork()
    if pid:
        return pid
    with _log(config.run_dir).open("a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    try:
        os._exit(train(config))
    except BaseException:
        traceback.print_exc()
        os._exit(70)


def _end(pid: int, run_dir: Path) -> None:
    if status := os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"a life ended with status {status}:\n{_log(run_dir).read_text()}")


def _lives(pid: int) -> bool:
    info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return info is None


def _unfinished(checkpoints: Path) -> set[tuple[str, int]]:
    """Return the saves that have begun and not ended, by name and time."""
    found = set()
    for path in checkpoints.glob(".incomplete_*"):
        with contextlib.suppress(FileNotFoundError):  # it has just been finished
            found.add((path.name, path.stat().st_ctime_ns))
    return found


def _resumed(config: Config) -> Config:
    assert config.run_dir is not None
    began = (config.run_dir / "config.json").exists()
    return dataclasses.replace(config, resume=began)


def _log(run_dir: Path) -> Path:
    return run_dir.with_suffix(".log")


if __name__ == "__main__":
    sys.exit(main())
