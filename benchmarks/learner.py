"""Measure an update: ours, ours with gradient surgery, and others' of the same algorithm.

Every contestant runs in a process of its own, one at a time and in short turns, A B C A B C: a busy
machine then slows all of them alike. Printed are medians over the turns, what each takes relative
to our update without balancing, to a straightforward one, and to its base (the same update with
uniform weights, or with a batch that is given instead of sampled), the share of the least possible
time (the operations that an update must do, at the rate of a matrix product of the same precision,
measured in the same turns), and peak memory.

    python benchmarks/learner.py --save learner            # everything; about half an hour
    python benchmarks/learner.py --tasks 10 --batches 128 --nets wide --seconds 20
    python benchmarks/learner.py --only ours surgery eager  # some contestants
    python benchmarks/learner.py --only ours pcgrad gradnorm surgery --nets norm --batches 32
    python benchmarks/learner.py --nets categorical --tasks 10 --batches 16 32 --only ours eager
    python benchmarks/learner.py --memory                   # MT50 with critics 1024 wide
    python benchmarks/learner.py --device cuda --nets wide --batches 128 --only ours captured \
        "captured surgery" compiled "compiled surgery" "compiled sampled" "compiled surgery bf16" \
        eager

The others need `pip install -e '.[peers]'`; one that cannot run says so in the table.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from learner_peers import (
    BASES,
    BF16,
    CAPTURED,
    CONTESTANTS,
    IN_BF16,
    PRODUCTS,
    Shape,
    least_operations,
)
from rich.console import Console
from rich.table import Table

from mtrl.device import has_bf16, keep_freed_memory, set_threads
from mtrl.files import write_json_atomic
from mtrl.graph import WARM_UP
from mtrl.provenance import machine

RESULTS = Path(__file__).parent / "results"
NETS = {
    "wide": (400, 3, False, False),
    "norm": (256, 2, True, False),
    "categorical": (256, 2, True, True),
}
BUILDERS = CONTESTANTS | BF16 | CAPTURED | PRODUCTS
TURN, PATIENCE = 0.3, 3.0  # seconds
GPU_CALLS = 0.02  # seconds of them that a GPU is told of before it is waited for


@dataclass(frozen=True)
class Options:
    """What to measure."""

    nets: tuple[Literal["wide", "norm", "categorical"], ...] = ("wide", "norm")
    """3 x 400, or 2 x 256 with layer norm; critics and actor alike. The last has critics that give
    a distribution over values."""
    tasks: tuple[int, ...] = (10, 50)
    """K."""
    batches: tuple[int, ...] = (16, 64, 128)
    """Transitions per task, B."""
    only: tuple[str, ...] = (*CONTESTANTS, *(BF16 if has_bf16(torch.device("cpu")) else ()))
    """Contestants, by name. Those with bf16 by default where the processor multiplies it."""
    seconds: float = 60.0
    """Per table."""
    threads: int = 1
    """For each contestant."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where updates are taken. On a GPU a contestant's memory is what it allocated there."""
    clock: Literal["wall", "cpu"] = "wall"
    """What a clock on the wall shows, or the processor time spent, for machines that are busy with
    other things; with one thread on an idle machine both are the same."""
    keep_freed: bool = True
    """Call `mtrl.device.keep_freed_memory` first."""
    memory: bool = False
    """Measure MT50 with critics 1024 wide, B = 128, instead."""
    save: str = ""
    """Keep the numbers as benchmarks/results/NAME.json, under this name."""


def _serve(name: str, shape: Shape, options: Options, pipe: Connection) -> None:
    """Run one contestant in a process of its own."""
    now = time.process_time if options.clock == "cpu" else time.perf_counter
    try:
        set_threads(options.threads)
        if options.keep_freed:
            keep_freed_memory()
        before = _peak_memory(shape.device)
        update = BUILDERS[name](shape)
        count = getattr(update, "count", 1)
        first = _seconds(update, 1, shape.device, time.perf_counter)
        if first < PATIENCE or shape.device == "cuda":  # else its warm-up weighs little
            for _ in range(WARM_UP + 1):  # the last of which a GPU captures
                update()
        calls = 1
        if shape.device == "cuda":
            calls += int(GPU_CALLS / _seconds(update, 1, shape.device, time.perf_counter))
        pipe.send(None)
    except Exception as error:  # a peer that cannot run is named, whatever is wrong with it
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0][:80]}")
        return
    while pipe.recv() == "turn":
        times: list[float] = []
        faults = -resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        end = now() + TURN
        while not times or now() < end:
            times.append(_seconds(update, calls, shape.device, now) / (calls * count))
        faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        faults //= len(times) * calls
        usage = {"memory": _peak_memory(shape.device) - before, "page_faults": faults}
        pipe.send((statistics.median(times), usage))


def _seconds(update: Callable[[], Any], calls: int, device: str, now: Callable[[], float]) -> float:
    """Time so many calls, the last of which is over; a GPU is only told what to do."""
    start = now()
    for _ in range(calls):
        update()
    if device == "cuda":
        torch.cuda.synchronize()
    return now() - start


def _peak_memory(device: str) -> int:
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated()


@contextmanager
def _contestant(
    name: str, shape: Shape, options: Options
) -> Iterator[tuple[Connection, str | None]]:
    """Start a contestant; yield its pipe and what kept it from running, if anything."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(name, shape, options, theirs))
    process.start()
    theirs.close()
    try:
        failure = ours.recv()
    except EOFError:
        failure = "its process died"
    yield ours, failure
    if failure is None:
        ours.send("end")
    process.join()


def measure(shape: Shape, options: Options) -> dict[str, dict[str, Any]]:
    """Let all contestants take turns at one shape; return numbers by name."""
    names = ["product", *(["product bf16"] if IN_BF16 & {*options.only} else []), *options.only]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    rows: dict[str, dict[str, Any]] = {name: {} for name in names}
    with ExitStack() as stack:
        pipes = {}
        for name in names:
            pipe, failure = stack.enter_context(_contestant(name, shape, options))
            if failure is None:
                pipes[name] = pipe
            else:
                rows[name]["failure"] = failure
        end = time.perf_counter() + options.seconds
        turns = 0
        while turns < 3 or time.perf_counter() < end:
            turns += 1
            for name, pipe in pipes.items():
                if turns > 1 and seconds[name][0] > PATIENCE:
                    continue  # one turn says enough about what is this slow
                pipe.send("turn")
                median, usage = pipe.recv()
                rows[name] |= usage
                seconds[name].append(median)
    for name, times in seconds.items():
        if times:
            rows[name] |= {"seconds": statistics.median(times), "turns": len(times)}
    return rows


def floor_seconds(shape: Shape, product: dict[str, Any]) -> float:
    """Return the time of an update's least operations at the rate of a measured product."""
    return least_operations(shape) * float(product["seconds"]) / shape.product_operations


def all_floors(shape: Shape, rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the floors by the product that they are computed from."""
    return {name: floor_seconds(shape, rows[name]) for name in PRODUCTS if name in rows}


def show(shape: Shape, rows: dict[str, dict[str, Any]], console: Console) -> None:
    """Print one table."""
    floors = all_floors(shape, rows)
    told = ", ".join(
        f"{_milliseconds(floor)} ms at {least_operations(shape) / floor / 1e9:.0f} GFLOP/s"
        for floor in floors.values()
    )
    table = Table(title=f"{shape}; floor {told}")
    columns = ("update", "ms", "to ours", "to eager", "to base", "share", "MB", "faults")
    for column in columns:
        table.add_column(column, justify="left" if column == "update" else "right", no_wrap=True)
    seconds = {name: row["seconds"] for name, row in rows.items() if "seconds" in row}
    for name, row in rows.items():
        if name in PRODUCTS:
            continue
        if "failure" in row:
            table.add_row(name, row["failure"])
            continue
        bases = (seconds.get(base) for base in ("ours", "eager", BASES.get(name, "")))
        floor = floors["product bf16" if name in IN_BF16 else "product"]
        table.add_row(
            name,
            _milliseconds(row["seconds"]),
            *(f"{row['seconds'] / base:.3g}" if base else "" for base in bases),
            "" if name == "sampling" else f"{100 * floor / row['seconds']:.0f}%",
            f"{row['memory'] / 1e6:.0f}",
            str(row["page_faults"]),
        )
    console.print(table)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.{1 if seconds >= 1e-2 else 2}f}"


def main(options: Options) -> None:
    """Measure, print and keep."""
    shapes = [
        Shape(K, B, *NETS[net], device=options.device)
        for net in options.nets
        for K in options.tasks
        for B in options.batches
    ]
    if options.memory:
        shapes = [Shape(50, 128, 400, 3, False, critic_width=1024, device=options.device)]
        only = ("ours", "surgery", *(("surgery bf16",) if has_bf16(torch.device("cpu")) else ()))
        options = replace(options, only=only)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("`--device cuda`: torch sees no GPU; use `--device cpu`.")
    console = Console(width=100)
    tables = []
    for shape in shapes:
        rows = measure(shape, options)
        show(shape, rows, console)
        tables.append({**vars(shape), "floor_seconds": all_floors(shape, rows), "rows": rows})
        if not options.save:
            continue
        record = {
            "machine": machine(),
            "torch": torch.__version__,
            "threads": options.threads,
            "clock": options.clock,
            "keep_freed": options.keep_freed,
            "load_average_at_end": os.getloadavg(),
            "tables": tables,
        }
        write_json_atomic(RESULTS / f"{options.save}.json", json.loads(json.dumps(record)))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
