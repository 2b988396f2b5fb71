"""Does it learn? Train with several seeds, keep the curves, print when a success rate was reached.

    python benchmarks/learning.py reach            # one task, three seeds
    python benchmarks/learning.py three            # three tasks, three seeds

Each curve is kept as benchmarks/results/NAME_seedN.jsonl, beside it the run's configuration with
the exact command, versions and machine.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from mtrl.files import write_json_atomic
from mtrl.logging import read_metrics

RESULTS = Path(__file__).parent / "results"
TRAIN = ("python", "scripts/train_mt10.py")

COMMON = (
    *("--envs-per-task", "16", "--update-ratio", "0.0625"),
    *("--eval-envs-per-task", "25", "--threads", "1", "--wandb", "disabled"),
)
"""One update for every step of 16 environments per task: updates are what time goes into."""

STUDIES = {
    "reach": (
        0.9,
        "--benchmark reach-v3 --total-steps 100000 --warmup-steps 8000 --eval-every 20000 "
        "--log-every 10000 --batch-size 128",
    ),
    "three": (
        0.8,
        "--benchmark reach-v3 drawer-close-v3 button-press-topdown-v3 --total-steps 720000 "
        "--warmup-steps 24000 --eval-every 60000 --log-every 30000",
    ),
}
"""Success rate to reach, and options, by name."""


@dataclass(frozen=True)
class Options:
    """What to train."""

    study: Annotated[Literal["reach", "three"], tyro.conf.Positional]
    """One task or three tasks."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """One run each, one after the other."""
    only_report: bool = False
    """Train nothing, print the table of what is kept."""


def main() -> None:
    """Train and report."""
    options = tyro.cli(Options)
    threshold, arguments = STUDIES[options.study]
    table = Table(title=f"{options.study}: steps and time until success reached {threshold}")
    for column in ("seed", "final success", "best", "env steps", "minutes", "steps to", "min. to"):
        table.add_column(column, justify="right")
    for seed in options.seeds:
        name = f"{options.study}_seed{seed}"
        if not options.only_report:
            run(name, [*arguments.split(), *COMMON, "--seed", str(seed)])
        table.add_row(str(seed), *report(RESULTS / f"{name}.jsonl", threshold))
    Console(width=100).print(table)


def run(name: str, arguments: list[str]) -> None:
    """Train once and keep curve and configuration."""
    directory = Path("runs") / f"learning_{name}"
    command = [*TRAIN, *arguments, "--run-dir", str(directory)]
    subprocess.run([sys.executable, *command[1:]], check=True)
    RESULTS.mkdir(exist_ok=True)
    curve = (directory / "metrics.jsonl").read_bytes()
    (RESULTS / f"{name}.jsonl").write_bytes(curve)
    record = json.loads((directory / "config.json").read_text())
    summary = json.loads((directory / "summary.json").read_text())
    described = {"command": shlex.join(command), "run": record, "summary": summary}
    write_json_atomic(RESULTS / f"{name}.json", described)


def report(path: Path, threshold: float) -> list[str]:
    """Return a table row about one curve."""
    curve = [line for line in read_metrics(path) if "eval/success_rate" in line]
    rates = [line["eval/success_rate"] or 0.0 for line in curve]
    reached = next((line for line, r in zip(curve, rates, strict=True) if r >= threshold), None)

    def cells(line: dict[str, float | None] | None) -> list[str]:
        if line is None:
            return ["-", "-"]
        minutes = (line["time/seconds"] or 0.0) / 60
        return [f"{line['progress/env_steps']:,}", f"{minutes:.1f}"]

    return [f"{rates[-1]:.2f}", f"{max(rates):.2f}", *cells(curve[-1]), *cells(reached)]


if __name__ == "__main__":
    main()
