"""What evaluations cost: the seconds of one, and their share of training time.

    python benchmarks/evaluating.py RUN...

Each run's newest agent is evaluated as in training, by all cores, and the training between two such
evaluations is timed as updates and steps a second, with a replay filled by random numbers. Threads
and steps between evaluations are the default ones, whatever the run had. The better an agent, the
sooner its episodes end.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from default_training import mid_run, seconds_per_step
from tables import print_and_keep

from mtrl.checkpoint import load_latest
from mtrl.device import resolve_device, set_threads, share_cores
from mtrl.run_directory import RunDirectory
from mtrl.train import Trainer
from scripts.config import Config
from scripts.resuming import restore
from scripts.training import Evaluator


@dataclass(frozen=True)
class Options:
    """Which agents to evaluate."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of runs."""
    evaluations: int = 3
    """How often each agent is evaluated, once beforehand not counted."""
    steps: int = 80
    """Vector steps, each with its updates, by which the time between evaluations is estimated."""
    save: str = "evaluating"
    """The file in benchmarks/results that the result is kept in."""


def main() -> None:
    """Measure and report."""
    options = tyro.cli(Options)
    rows = [measure(path, options) for path in options.runs]
    runs = " ".join(f"runs/{path.name}" for path in options.runs)
    command = f"python benchmarks/evaluating.py {runs} --evaluations {options.evaluations}"
    print_and_keep("evaluations in training", rows, command=command, name=options.save)


def measure(path: Path, options: Options) -> dict[str, object]:
    """Time one run's evaluations, and the training between two."""
    run = RunDirectory.open_existing(path)
    config = dataclasses.replace(Config.from_json(run.config), threads=0, simulation_threads=0)
    learning, simulating = share_cores(0, 0, overlap=config.overlap)
    with mid_run(config, learning, simulating) as trainer:
        seconds_per_step(trainer, 10)
        before = seconds_per_step(trainer, options.steps)
        success, seconds = evaluate(config, run, trainer, options.evaluations)
        set_threads(learning)
        after = seconds_per_step(trainer, options.steps)
        environments = trainer.envs.num_tasks * trainer.envs.envs_per_task
    default = Config.for_benchmark(config.benchmark, config.total_steps).eval_every
    interval = default / environments * (before + after) / 2
    one = statistics.median(seconds)
    return {
        "run": path.name,
        "success": round(success, 2),
        "seconds of an evaluation (median)": round(one, 1),
        "all": " ".join(f"{value:.1f}" for value in seconds),
        "steps between two": default,
        "seconds between two": round(interval, 1),
        "share of training time": round(one / (one + interval), 4),
    }


def evaluate(
    config: Config, run: RunDirectory, trainer: Trainer, times: int
) -> tuple[float, list[float]]:
    """Return the success of the run's agent, and what each evaluation took."""
    state = load_latest(run.checkpoints_path, run=run.id, only=("agent",)).state
    restore(trainer.agent, state["agent"], run)
    seconds = []
    device = resolve_device(config.device)
    with closing(Evaluator(config, device, stop=lambda: False)) as evaluator:
        for _ in range(times + 1):
            begun = time.perf_counter()
            evaluation = evaluator(trainer.agent)
            seconds.append(time.perf_counter() - begun)
    assert evaluation is not None
    return float(evaluation.success.mean()), seconds[1:]


if __name__ == "__main__":
    main()
