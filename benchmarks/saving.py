"""What a checkpoint costs: its bytes, the seconds to save it, and their share of training time.

    python benchmarks/saving.py                     # MT10's default training, replay full
    python benchmarks/saving.py --benchmark MT50

The training is the default one, with a replay filled by random numbers instead of by simulation.
The share is that of one save in the time between two, measured as updates and steps a second.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from default_training import mid_run, seconds_per_step
from rich.console import Console
from rich.table import Table

from mtrl.checkpoint import load_latest, save_checkpoint
from mtrl.device import share_cores
from mtrl.files import write_json_atomic
from mtrl.provenance import library_versions, machine
from mtrl.train import Trainer
from scripts.config import Config

RESULTS = Path(__file__).parent / "results"
SAVES = 5


@dataclass(frozen=True)
class Options:
    """Which training to save."""

    benchmark: str = "MT10"
    """MT10, MT25, MT50 or toy."""
    steps: int = 40
    """Vector steps, each with its update, by which the time between saves is estimated."""


def main() -> None:
    """Measure and report."""
    options = tyro.cli(Options)
    config = Config.for_benchmark((options.benchmark,))
    learning, simulating = share_cores(0, 0, overlap=config.overlap)
    with mid_run(config, learning, simulating) as trainer:
        seconds_per_step(trainer, 3)
        one_step = seconds_per_step(trainer, options.steps)
        environments = trainer.envs.num_tasks * trainer.envs.envs_per_task
        report(options, trainer, config.checkpoint_every / environments * one_step)


def report(options: Options, trainer: Trainer, interval: float) -> None:
    """Save several times, load once; print and keep the result."""
    directory = Path(tempfile.mkdtemp(prefix="mtrl-saving-"))
    seconds = []
    for number in range(SAVES):
        begun = time.perf_counter()
        path = save_checkpoint(directory, trainer.state_dict(), env_steps=number)
        seconds.append(time.perf_counter() - begun)
    begun = time.perf_counter()
    load_latest(directory)
    loading = time.perf_counter() - begun
    size = sum(file.stat().st_size for file in path.iterdir())
    shutil.rmtree(directory)
    saving = statistics.median(seconds)
    rows = {
        "bytes of a checkpoint": size,
        "transitions in it": trainer.replay.size * trainer.envs.num_tasks,
        "seconds to save (median of 5)": round(saving, 2),
        "seconds to save (all)": [round(value, 2) for value in seconds],
        "seconds to load and verify": round(loading, 2),
        "seconds of training between two": round(interval, 1),
        "share of training time": round(saving / (saving + interval), 4),
    }
    table = Table(title=f"{options.benchmark}: checkpoints")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in rows.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    command = f"python benchmarks/saving.py --benchmark {options.benchmark}"
    result = {"command": command, **rows, "versions": library_versions(), "machine": machine()}
    write_json_atomic(RESULTS / f"saving_{options.benchmark}.json", result)


if __name__ == "__main__":
    main()
