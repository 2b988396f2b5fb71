"""Count what an update would launch on a GPU; this needs none.

Networks are small, so a GPU is busy starting kernels, not running them: their number is what an
update takes there, a microsecond or two each even in a CUDA graph. Counted are the operations that
an update, its replay sampling and the watch for broken numbers hand to torch, but for views, and
Triton's kernels, which are interpreted here (`pip install triton`); and what torch's compiler makes
of them, with `--compile`, for an H100 (`gpu_code.py`).

    python benchmarks/launches.py --save launches
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from gpu_code import writing_for_a_gpu
from learner_peers import ACTION, BOTH, OBSERVATION, Shape
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtrl import dispatch
from mtrl.compiled import Compiled
from mtrl.files import write_json_atomic
from mtrl.guard import Guard
from mtrl.replay import Replay

RESULTS = Path(__file__).parent / "results"
WAYS = ("torch alone", "with kernels", "compiled")
NETS = {"3 x 400": (400, 3, False), "2 x 256 with layer norm": (256, 2, True)}


@dataclass(frozen=True)
class Options:
    """What to count."""

    tasks: tuple[int, ...] = (10, 50)
    """K."""
    batch: int = 128
    """Transitions per task, B: it decides how Gramians are found."""
    most: int = 0
    """Print so many kinds of operations, the most frequent of each update."""
    save: str = ""
    """Keep the numbers as benchmarks/results/NAME.json, under this name."""


class _Launches(TorchDispatchMode):
    """Counts operations that compute something, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        is_view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        # A number beside a tensor travels as an argument.
        allocates = "empty" in name or name == "scalar_tensor"
        holds_tensors = any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, result)))
        if holds_tensors and not (is_view or allocates):
            self.counts[name] += 1
        return result


def main() -> None:
    """Count and print."""
    options = tyro.cli(Options)
    tables = []
    for tasks in options.tasks:
        for name, (width, depth, layer_norm) in NETS.items():
            shape = Shape(K=tasks, B=options.batch, width=width, depth=depth, layer_norm=layer_norm)
            table = Table(title=f"MT{tasks}, {name}, {options.batch} transitions a task: launches")
            for column in ("update", *(name for way in WAYS for name in (way, "to uniform"))):
                table.add_column(column, justify="left" if column == "update" else "right")
            rows = {}
            for update, weighting in (("uniform", "uniform"), ("GradNorm + PCGrad", BOTH)):
                rows[update] = {
                    "torch alone": count(shape, weighting, dispatch.portable),
                    "with kernels": count(shape, weighting, dispatch.as_on_a_gpu),
                    "compiled": count_compiled(shape, weighting),
                }
            uniform, *_ = rows.values()
            for update, row in rows.items():
                totals = {way: sum(row[way].values()) for way in WAYS}
                table.add_row(
                    update,
                    *(
                        text
                        for way, total in totals.items()
                        for text in (str(total), f"{total / sum(uniform[way].values()):.2f}")
                    ),
                )
            Console(width=100).print(table)
            for update, row in rows.items():
                for way in ("with kernels", "compiled"):
                    most = Counter(row[way]).most_common(options.most)
                    if most:
                        print(update, way, *(f"{name} {number}" for name, number in most), sep=", ")
            tables.append({**vars(shape), "rows": rows})
    if options.save:
        write_json_atomic(RESULTS / f"{options.save}.json", {"tables": tables})


def count(
    shape: Shape, weighting: str, way: Callable[[], AbstractContextManager[None]]
) -> dict[str, int]:
    """Count what a training's update hands to torch and Triton, by name."""
    update = make_update(shape, weighting)
    with way():
        update()  # sets things up
        with _Launches() as launches:
            update()
    return dict(launches.counts)


def count_compiled(shape: Shape, weighting: str) -> dict[str, int]:
    """Count what is left of it where it is compiled, by name, what draws included."""
    update = make_update(shape, weighting)
    with dispatch.as_on_a_gpu(), writing_for_a_gpu() as written:
        compiled = Compiled(update, "cuda")
    return {**written[0].launches(), "draws": len(compiled.draws)}


def make_update(shape: Shape, weighting: str) -> Callable[[], dict[str, Tensor]]:
    """Make what a training repeats: a sample, an update, the watch for broken numbers."""
    agent = shape.agent(weighting, weighting)
    replay = Replay(
        shape.K, 30, OBSERVATION, ACTION, generator=torch.Generator(), steps=8, discount=0.99
    )
    replay.add(replace(shape, B=9).batch())
    guard = Guard([f"task {k}" for k in range(shape.K)], 9)

    def update() -> dict[str, Tensor]:
        metrics = agent.update(replay.sample(shape.B))
        guard.update(metrics)
        return metrics

    return update


if __name__ == "__main__":
    main()
