"""Does it learn? Train with several seeds, keep the curves, print when a success rate was reached.

    python benchmarks/learning.py reach_fp32                    # one task, three seeds
    python benchmarks/learning.py reach_bf16                    # and in bf16
    python benchmarks/learning.py three                         # three tasks, three seeds
    python benchmarks/learning.py mt10_default --seeds 1        # MT10 with the default options
    python benchmarks/learning.py mt10 --seeds 1                # in fp32 and not compiled
    python benchmarks/learning.py mt10_uniform-whole            # and without balancing
    python benchmarks/learning.py mt10_pcgrad --seeds 1 2       # a fifth of it, half the updates
    python benchmarks/learning.py mt50 --seeds 1                # MT50; seven hours as projected
    python benchmarks/learning.py mt10 --only-report            # the table of kept curves
    python benchmarks/learning.py mt10 --only-report --threshold 0.7

Each curve is kept as benchmarks/results/NAME_seedN.jsonl, beside it the run's configuration with
the exact command, versions and machine.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from mtrl.files import write_json_atomic
from mtrl.logging import read_metrics

RESULTS = Path(__file__).parent / "results"
TRAIN = "scripts/train_mt10.py"
STOPPED = 128 + signal.SIGINT
SUCCESS = "eval/success_rate"

Line = dict[str, float | None]

COMMON = "--eval-envs-per-task 25 --threads 1 --wandb disabled"
# What MT10 was learned with before it was half as many transitions twice as often.
LARGE_BATCHES = "--batch-size 64 --update-ratio 0.125 --temperature-learning-rate 3e-4"
# Ten points of a curve, as there have been since the first was kept.
TENTHS = "--eval-every 300000"
# What curves were reached with before there was anything else.
PLAIN = "--precision fp32 --compile off"
# The default until twice as many updates had shown what they are worth.
HALF = "--update-ratio 0.25"
UNIFORM = "--critic-weighting uniform --actor-weighting uniform"
# All as in `mt10_updates-half`, a fifth of whose budget this is.
EARLY = (
    f"{PLAIN} {HALF} --total-steps 600000 --warmup-steps 60000 "
    "--eval-every 300000 --log-every 30000 --checkpoint-every 300000"
)
# The warm-up is that of the first run, whose budget was 10 million at first.
MT50 = "--benchmark MT50 --warmup-steps 200000 --eval-every 1250000"
REACH = (
    "--benchmark reach-v3 --total-steps 100000 --warmup-steps 8000 --eval-every 20000 "
    "--log-every 10000 --batch-size 128 --envs-per-task 16 --update-ratio 0.0625"
)
STUDIES = {
    "reach": (0.9, f"{REACH} {PLAIN}"),
    "reach_fp32": (0.9, f"{REACH} --precision fp32"),
    "reach_bf16": (0.9, f"{REACH} --precision bf16"),
    "three": (
        0.8,
        f"{PLAIN} --benchmark reach-v3 drawer-close-v3 button-press-topdown-v3 "
        "--total-steps 720000 --warmup-steps 24000 --eval-every 60000 --log-every 30000 "
        "--envs-per-task 16 --batch-size 64 --update-ratio 0.0625",
    ),
    "mt10_default": (0.5, ""),  # what `make train` comes to on two cores
    "mt10": (0.5, f"{PLAIN} {TENTHS}"),  # and the defaults
    "mt10_updates-half": (0.5, f"{PLAIN} {HALF} {TENTHS}"),
    "mt10_entropy-4": (0.5, f"{PLAIN} --target-entropy -4 {HALF} {TENTHS}"),
    # Whose largest rewards, of 10, count as much as without.
    "mt10_normalized": (0.5, f"{PLAIN} --normalize-rewards --reward-scale 1 {HALF} {TENTHS}"),
    "mt10_correlated": (0.5, f"{PLAIN} {LARGE_BATCHES} {TENTHS}"),
    "mt10_fresh_noise": (0.5, f"{PLAIN} {LARGE_BATCHES} --exploration-correlation 0 {TENTHS}"),
    "mt10_unaveraged": (
        0.5,
        f"{PLAIN} {LARGE_BATCHES} --exploration-correlation 0 --actor-average-rate 1 {TENTHS}",
    ),
    "mt10_balanced-critics": (0.5, f"--actor-weighting uniform {EARLY}"),
    "mt10_balanced-actor": (0.5, f"--critic-weighting uniform {EARLY}"),
    # As many updates as with EARLY, each after four times as many steps.
    "mt10_envs-32": (
        0.5,
        f"{PLAIN} --envs-per-task 32 --update-ratio 0.0625 "
        "--total-steps 2400000 --warmup-steps 240000 "
        "--eval-every 1200000 --log-every 120000 --checkpoint-every 1200000",
    ),
    # A fifth more steps than with EARLY: updates with GradNorm and PCGrad take 1.17 times as long.
    "mt10_uniform-longer": (
        0.5,
        f"{PLAIN} {UNIFORM} {HALF} --total-steps 720000 --warmup-steps 60000 --eval-every 360000 "
        "--log-every 36000 --checkpoint-every 360000",
    ),
    "mt10_compiled": (0.5, f"--precision fp32 --compile on {TENTHS}"),
    "mt10_bf16": (0.5, f"--compile on --precision bf16 {TENTHS}"),
    "mt10_uniform-whole": (0.5, f"{PLAIN} {UNIFORM} {TENTHS}"),  # as "mt10", to its end
    "mt50": (0.5, f"{PLAIN} {MT50}"),
    "mt50_bf16": (0.5, f"--compile on --precision bf16 {MT50}"),
    "mt50_updates-half": (0.5, f"{PLAIN} {HALF} {MT50}"),
    "mt50_uniform": (0.5, f"{PLAIN} {UNIFORM} {HALF} {MT50}"),
} | {
    f"mt10_{weighting}": (0.5, f"{UNIFORM.replace('uniform', weighting)} {EARLY}")
    for weighting in ("uniform", "pcgrad", "gradnorm")
}
"""Success rate to reach, and options, by name."""


@dataclass(frozen=True)
class Options:
    """What to train."""

    study: Annotated[str, tyro.conf.Positional]
    """One task, three tasks, MT10, MT10 with something else than by default, or MT50."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """One run each, one after the other."""
    minutes: float | None = None
    """Ask each run to stop after so long."""
    only_report: bool = False
    """Train nothing, print the table of what is kept."""
    threshold: float | None = None
    """Success rate whose time is told; by default the study's own."""


def main() -> None:
    """Train and report."""
    options = tyro.cli(Options)
    if options.study not in STUDIES:
        raise SystemExit(f"no study {options.study}: choose from {', '.join(STUDIES)}")
    usual, arguments = STUDIES[options.study]
    threshold = usual if options.threshold is None else options.threshold
    summary = Table(title=f"{options.study}: steps and time until success reached {threshold}")
    for column in ("seed", "final success", "best", "env steps", "minutes", "steps to", "min. to"):
        summary.add_column(column, justify="right")
    curves = Table("seed", "success at each evaluation", title=options.study)
    for seed in options.seeds:
        name = f"{options.study}_seed{seed}"
        if not options.only_report:
            command = f"{TRAIN} {arguments} {COMMON} --seed {seed} --run-dir runs/learning_{name}"
            train(command.split(), options.minutes)
            keep(name, f"python {command}", Path("runs") / f"learning_{name}")
        if not (RESULTS / f"{name}.jsonl").exists():
            raise SystemExit(
                f"no curve of seed {seed} is kept: train it, or name others by --seeds"
            )
        curve = [line for line in read_metrics(RESULTS / f"{name}.jsonl") if SUCCESS in line]
        rates = [line[SUCCESS] or 0.0 for line in curve]
        summary.add_row(str(seed), *summarise(curve, rates, threshold))
        curves.add_row(str(seed), " ".join(f"{rate:.2f}" for rate in rates))
    Console(width=100).print(summary, curves)


def train(command: list[str], minutes: float | None) -> None:
    """Train once, for so long at most.

    Raises:
        CalledProcessError: If the training failed.
    """
    process = subprocess.Popen([sys.executable, *command])
    try:
        process.wait(None if minutes is None else 60 * minutes)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    if process.wait() not in (0, STOPPED):
        raise subprocess.CalledProcessError(process.returncode, shlex.join(command))


def keep(name: str, command: str, directory: Path) -> None:
    """Copy a run's curve, and its configuration with the command.

    Raises:
        ValueError: The command or the name has another seed than the run.
    """
    run = json.loads((directory / "config.json").read_text())
    seed = run["config"]["seed"]
    if f"--seed {seed} " not in f"{command} " or not name.endswith(f"_seed{seed}"):
        raise ValueError(f"{directory} has seed {seed}, other than {name}: {command}")
    (RESULTS / name).parent.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.jsonl").write_bytes((directory / "metrics.jsonl").read_bytes())
    described = {"command": command, "run": run}
    write_json_atomic(RESULTS / f"{name}.json", described)


def summarise(curve: list[Line], rates: list[float], threshold: float) -> list[str]:
    """Return a table row about one curve."""
    reached = next((line for line, r in zip(curve, rates, strict=True) if r >= threshold), None)

    def cells(line: Line | None) -> list[str]:
        if line is None:
            return ["-", "-"]
        minutes = (line["time/seconds"] or 0.0) / 60
        return [f"{line['progress/env_steps']:,}", f"{minutes:.1f}"]

    return [f"{rates[-1]:.2f}", f"{max(rates):.2f}", *cells(curve[-1]), *cells(reached)]


if __name__ == "__main__":
    main()
