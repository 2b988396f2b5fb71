"""What helps? Change one thing at a time, on four tasks of MT10, and compare.

    python benchmarks/recipe.py default categorical --seeds 1 2 3   # four minutes a run on a core
    python benchmarks/recipe.py                                     # every variant, three seeds
    python benchmarks/recipe.py --only-report                       # the table of what is kept

Every curve is kept as benchmarks/results/recipe/NAME_seedN.jsonl, beside it the run's configuration
with the exact command, versions and machine.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from learning import RESULTS, TRAIN, keep, train
from rich.console import Console
from rich.table import Table

from mtrl.logging import read_metrics

KEPT = RESULTS / "recipe"
COMMON = (
    "--benchmark push-v3 door-open-v3 button-press-topdown-v3 drawer-open-v3 "
    "--total-steps 400000 --warmup-steps 16000 --eval-every 80000 --log-every 20000 "
    "--checkpoint-every 400000 --envs-per-task 16 --update-ratio 0.0625 --threads 1 "
    "--simulation-threads 1 --wandb disabled"
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
    "mean": "--twins mean",
    "residual": RESIDUAL,
    "categorical": CATEGORICAL,
    "residual-categorical": f"{RESIDUAL} {CATEGORICAL}",
    "width-512": "--critic-width 512",
    "batch-128": "--batch-size 128",
    "batch-32": "--batch-size 32",
    "updates-twice": "--update-ratio 0.125",
    "steps-twice": (  # as many updates, each after as many steps of twice as many environments
        "--envs-per-task 32 --update-ratio 0.03125 --total-steps 800000 --warmup-steps 32000 "
        "--eval-every 160000 --log-every 40000 --checkpoint-every 800000"
    ),
    "critic-rate-3e-4": "--critic-learning-rate 3e-4",
    "actor-rate-1e-3": "--actor-learning-rate 1e-3",
    "discount-0.98": "--discount 0.98",
    "uniform": UNIFORM,
    "pcgrad": UNIFORM.replace("uniform", "pcgrad"),
    "gradnorm": UNIFORM.replace("uniform", "gradnorm"),
    "balanced-critics": "--actor-weighting uniform",
    "balanced-actor": "--critic-weighting uniform",
}
"""Options of the training script beside the default ones, by name."""


@dataclass(frozen=True)
class Options:
    """What to train."""

    variants: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of variants; by default all."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """One run each, one after the other."""
    only_report: bool = False
    """Train nothing, print the table of what is kept."""


def main() -> None:
    """Train what is not kept yet, and report."""
    options = tyro.cli(Options)
    for name in options.variants:
        if name not in VARIANTS:
            raise SystemExit(f"no variant {name}: choose from {', '.join(VARIANTS)}")
    KEPT.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds if not options.only_report else ():
        for name in options.variants or VARIANTS:
            if not (KEPT / f"{name}_seed{seed}.jsonl").exists():
                run(name, seed)
    report()


def run(name: str, seed: int) -> None:
    """Train one variant and keep its curve."""
    with tempfile.TemporaryDirectory(prefix="mtrl-recipe-") as temporary:
        directory = Path(temporary) / "run"
        command = f"{TRAIN} {COMMON} {VARIANTS[name]} --seed {seed}"
        train([*command.split(), "--run-dir", str(directory)], None)
        keep(f"recipe/{name}_seed{seed}", f"python {command}", directory)
        shutil.rmtree(directory)


def report() -> None:
    """Print what the kept curves reached: success, the mean return of all evaluations, time."""
    table = Table(title="four tasks of MT10, 400,000 steps, 6,000 updates: mean success")
    columns = ("variant", "seeds", "at the end", "over all evaluations", "return", "minutes")
    for column in columns:
        table.add_column(column, justify="left" if column == "variant" else "right")
    for name in VARIANTS:
        curves = [
            [row for row in read_metrics(path) if "eval/success_rate" in row]
            for path in sorted(KEPT.glob(f"{name}_seed*.jsonl"))
        ]
        if not curves:
            continue
        success = np.array([[row["eval/success_rate"] for row in curve] for curve in curves], float)
        minutes = [float(curve[-1]["time/seconds"] or 0) / 60 for curve in curves]
        last, mean = success[:, -1], success.mean(axis=1)
        returns = np.mean([_mean_return(row) for curve in curves for row in curve])
        cells = (_spread(last), _spread(mean), f"{returns:.0f}", f"{np.mean(minutes):.1f}")
        table.add_row(name, str(len(curves)), *cells)
    Console(width=100).print(table)


def _mean_return(row: dict[str, float | None]) -> float:
    """Average whole episodes' returns; NaN where episodes ended with success."""
    returns = [v for name, v in row.items() if name.startswith("eval/return/") and v is not None]
    return float(np.mean(returns)) if returns else float("nan")


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.2f} ({', '.join(f'{value:.2f}' for value in values)})"


if __name__ == "__main__":
    main()
