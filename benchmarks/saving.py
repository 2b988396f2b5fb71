"""What a checkpoint costs: its bytes, the seconds to save it, and their share of training time.

    python benchmarks/saving.py                     # MT10's default training, replay full
    python benchmarks/saving.py --benchmark MT50

The training is the default one, with a replay filled by random numbers instead of by simulation.
The share is that of one save in the time between two, measured as updates and steps a second.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from mtrl.checkpoint import load_latest, save_checkpoint
from mtrl.device import resolve_device, set_threads, share_cores
from mtrl.files import write_json_atomic
from mtrl.provenance import library_versions, machine
from mtrl.replay import Replay
from mtrl.seeding import make_generator
from mtrl.train import Trainer
from mtrl.types import Batch, Environments
from scripts.config import Config
from scripts.training import make_agent, make_envs, make_replay, make_schedule

RESULTS = Path(__file__).parent / "results"
SAVES = 5


@dataclass(frozen=True)
class Options:
    """Which training to save."""

    benchmark: str = "MT10"
    """MT10, MT25, MT50 or toy."""
    steps: int = 40
    """Vector steps, each with its update, by which the time between saves is estimated."""


class Nowhere:
    """A logger."""

    def log(self, metrics: object) -> None:
        """Forget it."""

    def close(self) -> None:
        """Do nothing."""


def main() -> None:
    """Measure and report."""
    options = tyro.cli(Options)
    config = Config.for_benchmark((options.benchmark,))
    learning, simulating = share_cores(0, 0, overlap=config.overlap)
    set_threads(learning)
    device = resolve_device("auto")
    with closing(make_envs(config, config.envs_per_task, simulating)) as environments:
        replay = make_replay(config, environments, device)
        fill(replay, environments)
        num_envs = environments.num_tasks * environments.envs_per_task
        steps = itertools.count()
        trainer = Trainer(
            agent=make_agent(config, environments, device),
            envs=environments,
            replay=replay,
            schedule=make_schedule(config),
            logger=Nowhere(),
            evaluate=lambda _: None,
            save=lambda *_: None,
            stop=lambda: next(steps) >= options.steps,
            generator=make_generator(0, "warm-up"),
            device=device,
        )
        # Beyond the warm-up, with as many updates as are due by then.
        trainer.progress.env_steps = config.warmup_steps + num_envs
        trainer.progress.updates = 1
        begun = time.perf_counter()
        trainer.run()
        per_step = (time.perf_counter() - begun) / options.steps / num_envs
        interval = config.checkpoint_every * per_step
        report(options, trainer, interval)


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


def fill(replay: Replay, environments: Environments) -> None:
    """Fill the ring."""
    (O,) = environments.single_observation_space.shape  # noqa: E741
    (A,) = environments.single_action_space.shape
    shape = (environments.num_tasks, environments.envs_per_task)
    seen, ended = torch.rand(*shape, O), np.zeros(shape, np.bool_)
    for _ in range(replay.capacity // environments.envs_per_task + 1):
        after = torch.rand(*shape, O)
        batch = Batch(seen, torch.rand(*shape, A), torch.rand(shape), after, torch.zeros(shape))
        replay.add(batch, ended)
        seen = after


if __name__ == "__main__":
    main()
