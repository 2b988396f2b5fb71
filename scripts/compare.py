"""Compare runs: success with intervals, who is likely better, steps and time to a threshold."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mtrl.curves import Budget
from mtrl.errors import UserError
from mtrl.progress import setup_console
from mtrl.statistics import bootstrap_interval, iqm, mean, probability_of_improvement
from scripts.command_line import exit_with, parse_options
from scripts.runs import Group, protocol, read_groups, tasks_title

_SEED = 0
_SAMPLES = 10_000


@dataclass(frozen=True)
class Options:
    """Compare runs by their evaluations; runs that differ in their seed only form a group."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Run directories or metrics.jsonl files; NAME=RUN names a group, and RUN may then be a
    pattern: 'pcgrad=runs/pcgrad_*'."""
    threshold: tuple[float, ...] = (0.5,)
    """Success rates whose first reaching is told, in steps and minutes."""
    steps: int | None = None
    """Compare at the latest evaluation by so many steps; by default at each group's last."""
    minutes: float | None = None
    """Compare at the latest evaluation by so many minutes, on average over a group's runs."""
    per_task: bool = False
    """Also show each task's success."""
    markdown: bool = False
    """Print tables in Markdown."""


@dataclass(frozen=True)
class Standing:
    """Where a group stands at one of its evaluations."""

    group: Group
    index: int

    @property
    def scores(self) -> np.ndarray:
        """Success rates, ``(R, K)``."""
        scores: np.ndarray = self.group.curve.success[self.index]
        return scores

    @property
    def steps(self) -> int:
        """Environment steps over all tasks."""
        return int(self.group.curve.steps[self.index])


def main() -> int:
    """Print the tables as the command line says."""
    options = parse_options(Options)
    setup_console()
    if not options.threshold:
        raise UserError("`--threshold` has no value: give success rates up to 1")
    for threshold in options.threshold:
        if not 0 < threshold <= 1:
            raise UserError(f"`--threshold` is {threshold}: give success rates up to 1")
    groups = read_groups(options.runs)
    if options.markdown:  # where a bar would end the cell
        groups = [replace(group, label=group.label.replace("|", r"\|")) for group in groups]
    budget = Budget(
        np.inf if options.steps is None else options.steps,
        np.inf if options.minutes is None else 60 * options.minutes,
    )
    standings = [stand(group, budget) for group in groups]
    tables = [success_table(standings), threshold_table(groups, options.threshold, budget)]
    if len(standings) > 1:
        tables.append(improvement_table(standings))
    if options.per_task:
        tables.append(task_table(standings))
    lines = notes(standings, options.threshold, budget)
    show(tables, lines, markdown=options.markdown)
    return 0


def show(tables: Sequence[Table], lines: Sequence[str], *, markdown: bool) -> None:
    """Print tables, and lines below them."""
    # What is kept in a file need not fit a window.
    wide = markdown or not sys.stdout.isatty()
    console = Console(width=1000 if wide else None, highlight=False)
    for table in tables:
        if markdown:
            console.print(f"**{table.title}**")
            table.title, table.box = None, box.MARKDOWN
        console.print(table)
        if not markdown:  # whose box ends with an empty line
            console.print()
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def stand(group: Group, budget: Budget) -> Standing:
    """Find a group's latest evaluation within a budget.

    Raises:
        UserError: it was not evaluated by then.
    """
    evaluations = group.curve.evaluations(budget)
    if not evaluations:
        steps, minutes = group.curve.steps[0], group.curve.seconds[0].mean() / 60
        if budget.steps < steps:
            asked, least = f"`--steps` is {budget.steps:g}", f"{steps}"
        else:
            least = f"{math.ceil(10 * minutes) / 10:.1f}"  # up, so that it is enough
            asked = f"`--minutes` is {budget.seconds / 60:g}"
        raise UserError(f"{asked}: give at least {least}, where {group.label} was first evaluated")
    return Standing(group, evaluations - 1)


def success_table(standings: Sequence[Standing]) -> Table:
    """Tell how well each group does."""
    title = f"Success on {tasks_title([standing.group for standing in standings])}"
    columns = ("runs", "steps", "per task", "minutes", "IQM", "95%", "mean")
    table = make_table(title, "group", columns)
    for standing in standings:
        curve, scores = standing.group.curve, standing.scores
        cells = [
            str(len(scores)),
            f"{standing.steps:,}",
            f"{standing.steps // scores.shape[1]:,}",
            f"{curve.seconds[standing.index].mean() / 60:.1f}",
            f"{iqm(scores):.3f}",
            interval(iqm, scores),
            f"{mean(scores):.3f}",
        ]
        table.add_row(escape(standing.group.label), *cells)
    return table


def threshold_table(groups: Sequence[Group], thresholds: Sequence[float], budget: Budget) -> Table:
    """Tell how soon each group gets how far: medians over its runs.

    A run that does not get there, within the budget, counts as taking forever, so that the
    median is one of all runs.
    """
    columns = ("success", "reached by", "steps", "per task", "minutes")
    table = make_table("Steps and minutes to a success rate", "group", columns)
    for threshold in thresholds:
        for group in groups:
            runs = [run.curve.reached(threshold, budget) for run in group.runs]
            reached = np.array(runs)
            steps, seconds = np.median(reached, axis=0)
            cells = [f"{threshold:g}", f"{np.isfinite(reached[:, 0]).sum()} of {len(reached)}"]
            if np.isfinite(steps):
                per_task = steps / len(group.curve.task_names)
                cells += [f"{steps:,.0f}", f"{per_task:,.0f}", f"{seconds / 60:.1f}"]
            else:
                cells += ["-"] * 3
            table.add_row(escape(group.label), *cells)
    return table


def improvement_table(standings: Sequence[Standing]) -> Table:
    """Tell of each pair of groups how probable it is that a run of one beats one of the other."""
    labels = [standing.group.label for standing in standings]
    table = make_table("Probability that a run of the row beats one of the column", "group", labels)
    for one in standings:
        cells = []
        for other in standings:
            pair = one.scores, other.scores
            odds = f"{probability_of_improvement(*pair):.2f}"
            between = interval(probability_of_improvement, *pair)
            cells.append("" if one is other else f"{odds} ({between})")
        table.add_row(escape(one.group.label), *cells)
    return table


def task_table(standings: Sequence[Standing]) -> Table:
    """Tell each task's success, averaged over a group's runs."""
    labels = [standing.group.label for standing in standings]
    table = make_table("Success by task", "task", labels)
    for k, name in enumerate(standings[0].group.curve.task_names):
        table.add_row(name, *(f"{standing.scores[:, k].mean():.2f}" for standing in standings))
    table.add_section()
    table.add_row("mean", *(f"{standing.scores.mean():.3f}" for standing in standings))
    return table


def make_table(title: str, rows: str, columns: Sequence[str]) -> Table:
    """Make a table with a column of names and others of numbers."""
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(rows, overflow="fold")
    for column in columns:
        table.add_column(escape(column), justify="right", overflow="fold")  # no digit is left out
    return table


def interval(statistic: Callable[..., np.ndarray], *scores: np.ndarray) -> str:
    """Return a bootstrap interval as a cell."""
    # A generator for each, so that a cell does not depend on what else the table holds.
    generator = np.random.default_rng(_SEED)
    ends = bootstrap_interval(statistic, *scores, generator=generator, samples=_SAMPLES)
    return "-" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"


def notes(standings: Sequence[Standing], thresholds: Sequence[float], budget: Budget) -> list[str]:
    """Say under which protocol, from which seeds, on what hardware, and what to be careful with."""
    groups = [standing.group for standing in standings]
    lines = [
        f"Protocol: {protocol(groups)}.",
        f"95%: stratified bootstrap over runs, tasks as strata, {_SAMPLES:,} samples. Minutes are "
        "wall clock, evaluations included, without what a killed run had to repeat. Steps and "
        "minutes to a threshold are medians over runs, by the first evaluation whose mean success "
        "is as high.",
    ]
    seeds = [(group.label, [run.seed for run in group.runs]) for group in groups]
    if known := [f"{label} {', '.join(map(str, s))}" for label, s in seeds if None not in s]:
        lines.append(f"Seeds: {'; '.join(known)}.")
    if machines := sorted({run.machine for group in groups for run in group.runs} - {""}):
        lines.append(f"Hardware: {'; '.join(machines)}.")
    fewest = min(len(group.runs) for group in groups)
    if fewest == 1:
        lines.append("A single run says nothing about other seeds: it has no interval.")
    elif fewest < 5:
        lines.append("Intervals of fewer than five runs are too narrow; train more seeds.")
    if len({standing.steps for standing in standings}) > 1:
        advice = "; --steps N compares them by the same budget" if budget == Budget() else ""
        lines.append(f"The groups stand at different steps{advice}.")
    if names := ended_early(groups, thresholds, budget):
        lines.append(
            f"Some runs of {', '.join(names)} ended sooner than others, without having reached a "
            "success rate named above: whether they would have is not known."
        )
    return lines


def ended_early(groups: Sequence[Group], thresholds: Sequence[float], budget: Budget) -> list[str]:
    """Name groups with runs that others outlast, and that had not reached a threshold by then."""
    longest = max(run.curve.steps[-1] for group in groups for run in group.runs)
    longest = min(budget.steps, longest)
    return [
        group.label
        for group in groups
        if any(
            run.curve.steps[-1] < longest
            and run.curve.seconds[-1] < budget.seconds
            and np.isinf(run.curve.reached(threshold)[0])
            for run in group.runs
            for threshold in thresholds
        )
    ]


if __name__ == "__main__":
    exit_with(main)
