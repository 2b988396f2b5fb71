"""Draw runs: learning curves, success by task, success by task over time; as PNG and SVG."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import matplotlib as mpl
import tyro

from mtrl.errors import UserError
from mtrl.progress import setup_console
from scripts.command_line import exit_with, parse_options
from scripts.figures import STYLE, draw_curves, draw_heatmap, draw_tasks, save
from scripts.runs import read_groups


@dataclass(frozen=True)
class Options:
    """Draw runs from their metrics.jsonl; runs that differ in their seed only form one curve."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Run directories or metrics.jsonl files; NAME=RUN names a group, and RUN may then be a
    pattern: 'pcgrad=runs/pcgrad_*'."""
    output: Path = Path("plots")
    """The directory for curves, tasks and heatmap, each as .png and .svg; made if missing."""
    statistic: Literal["mean", "iqm"] = "mean"
    """What a curve shows over tasks and runs: their mean, or the mean of their middle half."""
    dpi: int = 150
    """Pixels per inch of the PNG files."""


def main() -> int:
    """Draw as the command line says."""
    options = parse_options(Options)
    setup_console()
    if not 10 <= options.dpi <= 1200:
        raise UserError(f"`--dpi` is {options.dpi}: give 10 to 1200")
    groups = read_groups(options.runs)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(STYLE):
            for name, figure in {
                "curves": draw_curves(groups, options.statistic),
                "tasks": draw_tasks(groups),
                "heatmap": draw_heatmap(groups),
            }.items():
                for path in save(figure, options.output / name, options.dpi):
                    print(path)
    except OSError as error:
        raise UserError(
            f"`--output` {options.output} cannot be written ({error.strerror}): name a directory "
            "that you may write to"
        ) from error
    return 0


if __name__ == "__main__":
    exit_with(main)
