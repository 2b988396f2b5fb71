"""Say where an update's time goes, operation by operation.

An operation's time is the lower quartile over its calls with the same shapes, times the number of
calls in an update: on a machine that does other things as well, a mean would mostly show those.

    python benchmarks/learner_profile.py ours --tasks 10 --batch 16 --net norm
"""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Literal

import torch
import tyro
from learner import NETS
from learner_peers import BF16, CONTESTANTS, Shape
from rich.console import Console
from rich.table import Table
from torch.profiler import profile

from mtrl.device import keep_freed_memory


def main(
    contestant: Annotated[str, tyro.conf.Positional] = "ours",
    tasks: int = 10,
    batch: int = 16,
    net: Literal["wide", "norm", "categorical"] = "norm",
    updates: int = 40,
    rows: int = 20,
) -> None:
    """Profile one contestant of `benchmarks/learner.py` on one thread."""
    torch.set_num_threads(1)
    keep_freed_memory()
    shape = Shape(tasks, batch, *NETS[net])
    update = (CONTESTANTS | BF16)[contestant](shape)
    for _ in range(5):
        update()
    with profile(record_shapes=True) as profiler:
        for _ in range(updates):
            update()
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in profiler.events():
        times[event.name, str(event.input_shapes)].append(event.self_cpu_time_total)
    milliseconds: dict[str, float] = defaultdict(float)
    calls: dict[str, float] = defaultdict(float)
    for (name, _), each in times.items():
        calls[name] += len(each) / updates
        milliseconds[name] += sorted(each)[len(each) // 4] * len(each) / updates / 1e3
    total = sum(milliseconds.values())
    table = Table(title=f"{contestant}, {shape}: {total:.1f} ms, {sum(calls.values()):.0f} calls")
    for column in ("operation", "ms", "share", "calls"):
        table.add_column(column, justify="left" if column == "operation" else "right")
    for name in sorted(milliseconds, key=lambda name: -milliseconds[name])[:rows]:
        share = f"{100 * milliseconds[name] / total:.0f}%"
        table.add_row(name, f"{milliseconds[name]:.2f}", share, f"{calls[name]:.0f}")
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
