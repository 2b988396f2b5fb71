"""What each preset costs on this machine: steps and updates a second, and hours for its budget.

    python benchmarks/presets.py                     # for MT10
    python benchmarks/presets.py --benchmark MT50

Each preset's training is timed beyond its warm-up, with the default threads and a replay filled by
random numbers. Evaluations and checkpoints are left out.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass

import tyro
from default_training import mid_run, seconds_per_step
from tables import print_and_keep

from mtrl.device import share_cores
from scripts.config import Config
from scripts.presets import PresetName


@dataclass(frozen=True)
class Options:
    """Which training to time."""

    benchmark: str = "MT10"
    """MT10, MT25, MT50 or toy."""
    seconds: float = 15.0
    """About so long is each preset timed, two steps of all environments at least."""


def main() -> None:
    """Measure and report."""
    options = tyro.cli(Options)
    rows = [measure(preset, options) for preset in typing.get_args(PresetName)]
    print_and_keep(
        f"{options.benchmark}: presets",
        rows,
        command=f"python benchmarks/presets.py --benchmark {options.benchmark}",
        name=f"presets_{options.benchmark}",
    )


def measure(preset: PresetName, options: Options) -> dict[str, object]:
    """Time one preset's training."""
    config = Config.for_benchmark((options.benchmark,), preset=preset)
    learning, simulating = share_cores(0, 0, overlap=config.overlap)
    with mid_run(config, learning, simulating) as trainer:
        environments = trainer.envs.num_tasks * trainer.envs.envs_per_task
        updates_a_step = config.envs_per_task * config.update_ratio
        seconds_per_step(trainer, 2)  # the first of which may compile
        roughly = seconds_per_step(trainer, 2)
        one = seconds_per_step(trainer, max(2, round(options.seconds / roughly)))
    return {
        "preset": preset,
        "steps in all": config.total_steps,
        "steps/s": round(environments / one),
        "updates/s": round(updates_a_step / one, 1),
        "hours": round(config.total_steps / environments * one / 3600, 1),
    }


if __name__ == "__main__":
    main()
