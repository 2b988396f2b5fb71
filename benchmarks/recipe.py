"""What helps? Change one thing at a time, on four tasks of MT10, and compare.

    python benchmarks/recipe.py default categorical --seeds 1 2 3   # four to eight minutes a run
    python benchmarks/recipe.py                                     # every variant, three seeds
    python benchmarks/recipe.py --only-report                       # the table of what is kept
    python benchmarks/recipe.py --only-report --study recipe_noise  # and of an earlier comparison

Every curve is kept as benchmarks/results/STUDY/NAME_seedN.jsonl, beside it the run's configuration
with the exact command, versions and machine.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from learning import RESULTS, SUCCESS, TRAIN, Line, keep, train
from rich.console import Console
from rich.table import Table

from mtrl.logging import read_metrics
from mtrl.statistics import bootstrap_interval, iqm

COMMON = (
    "--envs-per-task 16 --update-ratio 0.125 --threads 1 --simulation-threads 1 --wandb disabled"
)
RESIDUAL = "--residual --critic-depth 3"
CATEGORICAL = "--critic-values categorical"
UNIFORM = "--critic-weighting uniform --actor-weighting uniform"
VARIANTS = {
    "default": "",
    "n-steps-1": "--n-steps 1",
    "n-steps-3": "--n-steps 3",
    "n-steps-16": "--n-steps 16",
    "correlation-0": "--exploration-correlation 0",
    "correlation-0.5": "--exploration-correlation 0.5",
    "correlation-0.9": "--exploration-correlation 0.9",
    "unaveraged": "--actor-average-rate 1",
    "entropy-4": "--target-entropy -4",
    "entropy-1": "--target-entropy -1",
    "entropy0": "--target-entropy 0",
    "temperature-rate-3e-4": "--temperature-learning-rate 3e-4",
    "temperature-rate-1e-2": "--temperature-learning-rate 1e-2",
    "initial-temperature-0.3": "--initial-temperature 0.3",
    "mean": "--twins mean",
    "residual": RESIDUAL,
    "categorical": CATEGORICAL,
    "residual-categorical": f"{RESIDUAL} {CATEGORICAL}",
    "width-512": "--critic-width 512",
    "batch-64": "--batch-size 64",
    "batch-64-half": "--batch-size 64 --update-ratio 0.0625",
    "batch-16": "--batch-size 16",
    "batch-16-twice": "--batch-size 16 --update-ratio 0.25",
    "updates-twice": "--update-ratio 0.25",
    "steps-twice": (  # as many updates, each after as many steps of twice as many environments
        "--envs-per-task 32 --update-ratio 0.0625 --total-steps 480000 --warmup-steps 32000 "
        "--eval-every 96000 --log-every 24000 --checkpoint-every 480000"
    ),
    "steps-8-times": (  # as many updates, each after 256 steps instead of 32
        "--envs-per-task 128 --update-ratio 0.015625 --total-steps 1920000 --warmup-steps 128000 "
        "--eval-every 384000 --log-every 96000 --checkpoint-every 1920000"
    ),
    "no-layer-norm": "--no-layer-norm",
    "critic-rate-3e-4": "--critic-learning-rate 3e-4",
    "actor-rate-1e-3": "--actor-learning-rate 1e-3",
    "discount-0.98": "--discount 0.98",
    "unclipped": "--max-gradient-norm 1e9",
    "reward-scale-0.02": "--reward-scale 0.02",
    # Whose largest rewards, of 10, count as much as without.
    "normalized-rewards": "--normalize-rewards --reward-scale 1",
    "embedding-32": "--task-embedding 32",
    "rate-halves-3000": "--learning-rate-half-life 3000",
    "reset-4000": "--reset-every 4000",
    "alpha-0.5": "--gradnorm-alpha 0.5 --gradnorm-actor-alpha 0.5",
    "alpha-1.5": "--gradnorm-alpha 1.5 --gradnorm-actor-alpha 1.5",
    "uniform": UNIFORM,
    # A sixth more updates, which take as long as the default's with GradNorm and PCGrad.
    "uniform-longer": (
        f"{UNIFORM} --total-steps 280000 --eval-every 56000 --log-every 14000 "
        "--checkpoint-every 280000"
    ),
    "pcgrad": UNIFORM.replace("uniform", "pcgrad"),
    "gradnorm": UNIFORM.replace("uniform", "gradnorm"),
    "balanced-critics": "--actor-weighting uniform",
    "balanced-actor": "--critic-weighting uniform",
}
"""Options of the training script beside the default ones, by name."""
STUDIES = {
    "recipe": (  # tasks that exploration finds with any seed
        "--benchmark reach-v3 push-v3 door-open-v3 button-press-topdown-v3 "
        "--total-steps 240000 --warmup-steps 16000 --eval-every 48000 --log-every 12000 "
        "--checkpoint-every 240000"
    ),
    "recipe_drawer": (  # with one that it finds by luck
        "--benchmark push-v3 door-open-v3 button-press-topdown-v3 drawer-open-v3 "
        "--total-steps 400000 --warmup-steps 16000 --eval-every 80000 --log-every 20000 "
        "--checkpoint-every 400000"
    ),
}
"""Tasks and budget by name."""


@dataclass(frozen=True)
class Options:
    """What to train."""

    variants: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of variants; by default all."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """One run each, one after the other."""
    only_report: bool = False
    """Train nothing, print the table of what is kept."""
    study: str = "recipe"
    """The tasks and the budget, and the folder in benchmarks/results; to report, any folder."""


def main() -> None:
    """Train what is not kept yet, and report."""
    options = tyro.cli(Options)
    if not options.only_report:
        train_missing(options)
    report(RESULTS / options.study)


def train_missing(options: Options) -> None:
    """Train what is not kept yet."""
    if options.study not in STUDIES:
        raise SystemExit(f"no study {options.study}: choose from {', '.join(STUDIES)}")
    for name in options.variants:
        if name not in VARIANTS:
            raise SystemExit(f"no variant {name}: choose from {', '.join(VARIANTS)}")
    for seed in options.seeds:
        for name in options.variants or VARIANTS:
            kept = f"{options.study}/{name}_seed{seed}"
            if not (RESULTS / f"{kept}.jsonl").exists():
                run(kept, f"{STUDIES[options.study]} {COMMON} {VARIANTS[name]}", seed)


def run(name: str, arguments: str, seed: int) -> None:
    """Train once and keep the curve."""
    with tempfile.TemporaryDirectory(prefix="mtrl-recipe-") as temporary:
        directory = Path(temporary) / "run"
        command = f"{TRAIN} {arguments} --seed {seed}"
        train([*command.split(), "--run-dir", str(directory)], None)
        keep(name, f"python {command}", directory)


def report(folder: Path) -> None:
    """Print what the kept curves reached, and when."""
    table = Table(title=f"{folder.name}: success on four tasks of MT10")
    columns = ("variant", "IQM", "95%", "mean at the end, by seed", "of all evaluations", "updates")
    for column in (*columns, "minutes"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    names = {path.stem.rpartition("_seed")[0] for path in folder.glob("*_seed*.jsonl")}
    if not names:
        raise SystemExit(f"no curves are kept in {folder}")
    for name in sorted(names, key=[*VARIANTS, *sorted(names)].index):
        curves = [
            [row for row in read_metrics(path) if SUCCESS in row]
            for path in sorted(folder.glob(f"{name}_seed*.jsonl"))
        ]
        ends = np.array([by_task(curve[-1]) for curve in curves])
        generator = np.random.default_rng(0)
        interval = bootstrap_interval(iqm, ends, generator=generator)
        last = [curve[-1][SUCCESS] or 0.0 for curve in curves]
        means = [np.mean([row[SUCCESS] or 0.0 for row in curve]) for curve in curves]
        updates = {f"{curve[-1]['progress/updates']:,}" for curve in curves}
        minutes = np.mean([(curve[-1]["time/seconds"] or 0.0) / 60 for curve in curves])
        table.add_row(
            name,
            f"{iqm(ends):.2f}",
            "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}",
            f"{np.mean(last):.2f}  ({' '.join(f'{end:.2f}' for end in last)})",
            f"{np.mean(means):.2f}",
            ", ".join(sorted(updates)),
            f"{minutes:.1f}",
        )
    Console(width=120).print(table)


def by_task(row: Line) -> list[float]:
    """Return each task's success."""
    return [rate or 0.0 for name, rate in row.items() if name.startswith(f"{SUCCESS}/")]


if __name__ == "__main__":
    main()
