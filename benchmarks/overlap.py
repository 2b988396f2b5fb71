"""What it brings to learn while the environments step, by how the cores are shared.

    python benchmarks/overlap.py                     # MT10's default training
    python benchmarks/overlap.py --compile           # with compiled updates

All ways are timed in turn, several rounds of them, and the medians compared.
"""

from __future__ import annotations

import dataclasses
import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import tyro
from default_training import mid_run, seconds_per_step
from rich.console import Console
from rich.table import Table

from mtrl.compiled import CompileName
from mtrl.device import set_threads
from mtrl.files import write_json_atomic
from mtrl.provenance import library_versions, machine
from scripts.config import Config

RESULTS = Path(__file__).parent / "results"
WAYS = (
    *((False, 2, 2), (False, 1, 2), (False, 1, 1)),
    *((True, 1, 1), (True, 2, 1), (True, 1, 2), (True, 2, 2)),
)
"""Overlap or not, threads that learn, threads that simulate."""


@dataclass(frozen=True)
class Options:
    """Which training to time."""

    benchmark: str = "MT10"
    """MT10, MT25, MT50 or toy."""
    steps: int = 12
    """Steps of all environments in a round."""
    rounds: int = 5
    """How often each way is timed."""
    compile: bool = False
    """Compile updates."""


def main() -> None:
    """Measure and report."""
    options = tyro.cli(Options)
    config = Config.for_benchmark((options.benchmark,))
    compiling: CompileName = "on" if options.compile else "off"
    config = dataclasses.replace(config, replay_capacity=20_000, compile=compiling)
    times: dict[tuple[bool, int, int], list[float]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        trainers = {
            way: stack.enter_context(
                mid_run(dataclasses.replace(config, overlap=way[0]), way[1], way[2])
            )
            for way in WAYS
        }
        for _ in range(options.rounds + 1):
            for way, trainer in trainers.items():
                set_threads(way[1])
                times[way].append(seconds_per_step(trainer, options.steps))
    name = f"{options.benchmark}{'_compiled' if options.compile else ''}"
    table = Table(title=f"{name}: milliseconds per step of all environments")
    for column in ("overlap", "learning", "simulating", "median", "least", "most"):
        table.add_column(column, justify="right")
    rows = []
    for (overlap, learning, simulating), all_times in times.items():
        milliseconds = [1000 * value for value in all_times[1:]]  # the first is for warming up
        numbers = (statistics.median(milliseconds), min(milliseconds), max(milliseconds))
        rounded = [round(number, 1) for number in numbers]
        table.add_row(str(overlap), str(learning), str(simulating), *map(str, rounded))
        rows.append({"way": [overlap, learning, simulating], "median, least, most": rounded})
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    result = {"rows": rows, "versions": library_versions(), "machine": machine()}
    write_json_atomic(RESULTS / f"overlap_{name}.json", result)


if __name__ == "__main__":
    main()
