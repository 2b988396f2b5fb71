"""The pictures of a study: learning curves, success by task, success by task over time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from mtrl.files import replace_atomically
from mtrl.statistics import bootstrap_interval, iqm, mean

from .runs import Group, protocol, tasks_title

STATISTICS = {"mean": mean, "iqm": iqm}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.5",
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: searchable, and legible at any size
    "svg.hashsalt": "mtrl",  # the same picture, the same bytes
}
"""Settings to draw and save under, for `matplotlib.rc_context`."""

# Okabe and Ito's colours, told apart with every common kind of colour blindness.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_HATCHES = ("", "////", "....", "xxxx")  # of bars, once colours repeat
_STEPS = "environment steps, all tasks together"
_SEED, _SAMPLES = 0, 2_000


def draw_curves(groups: Sequence[Group], statistic: Literal["mean", "iqm"]) -> Figure:
    """Draw success against environment steps, and against wall clock.

    Against wall clock, a point stands at the mean time that the group's runs took to get there.
    A group of several runs has a band, the 95% interval of the stratified bootstrap.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    by_steps, by_time = figure.subplots(1, 2, sharey=True)
    slowest = max(group.curve.seconds.max() for group in groups)
    unit, seconds = ("hours", 3600) if slowest > 2 * 3600 else ("minutes", 60)
    lines = []
    for index, group in enumerate(groups):
        curve = group.curve
        value = STATISTICS[statistic](curve.success)
        band = _band(group, statistic)
        for axes, x in ((by_steps, curve.steps), (by_time, curve.seconds.mean(axis=1) / seconds)):
            colour, marker = _look(index)
            often = max(1, len(x) // 20)
            (line,) = axes.plot(x, value, marker + "-", color=colour, ms=3.5, markevery=often)
            if band is not None:
                axes.fill_between(x, *band, color=colour, alpha=0.18, linewidth=0)
        lines.append(line)
    by_steps.xaxis.set_major_formatter(EngFormatter(sep=""))
    by_steps.set(xlabel=_STEPS, ylabel="IQM of success" if statistic == "iqm" else "mean success")
    by_time.set(xlabel=f"wall clock, {unit}")
    by_time.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    by_time.tick_params(axis="y", length=0)
    for axes in (by_steps, by_time):
        axes.set(ylim=(-0.02, 1.02), xlim=(0, None))
        axes.grid(True)
    several = any(len(group.runs) > 1 for group in groups)
    told = "IQM" if statistic == "iqm" else "mean"
    band_told = ", band: 95% stratified bootstrap" if several else ""
    _title(figure, groups, f"{told} over tasks and runs{band_told}")
    _legend(figure, lines, groups)
    return figure


def draw_tasks(groups: Sequence[Group]) -> Figure:
    """Draw each task's success at the end of each group: a bar for the mean, a dot for each run."""
    tasks = groups[0].curve.task_names
    K, width = len(tasks), 0.8 / len(groups)
    height = 1.6 + K * max(0.24, 0.13 * len(groups) + 0.06)
    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.subplots()
    bars = []
    for index, group in enumerate(groups):
        scores = group.curve.success[-1]  # (R, K)
        rows = np.arange(K) + (index + 0.5) * width - 0.4
        hatch = _HATCHES[index // len(_COLOURS) % len(_HATCHES)]
        drawn = axes.barh(
            rows,
            scores.mean(axis=0),
            width * 0.9,
            color=_look(index)[0],
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
        )
        bars.append(drawn.patches[0])
        if len(scores) > 1:
            axes.plot(scores.T, rows, "o", ms=2.5, mfc="white", mec="0.2", mew=0.6, clip_on=False)
        for row, value in zip(rows, scores.mean(axis=0), strict=True):
            axes.annotate(
                f"{value:.2f}", (1, row), (6, 0), textcoords="offset points", va="center", size=7
            )
    axes.set(yticks=np.arange(K), yticklabels=tasks, ylim=(K - 0.5, -0.5), xlim=(0, 1))
    axes.set_xlabel("success at the last evaluation" + _at_steps(groups))
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    several = any(len(group.runs) > 1 for group in groups)
    _title(figure, groups, "success by task" + (", dots: single runs" if several else ""))
    _legend(figure, bars, groups, with_steps=not _at_steps(groups))
    return figure


def draw_heatmap(groups: Sequence[Group]) -> Figure:
    """Draw each task's success over time, a panel a group.

    A cell reaches from one evaluation back to the one before, or to the beginning.
    """
    tasks = groups[0].curve.task_names
    K, columns = len(tasks), min(len(groups), 3)
    rows = -(-len(groups) // columns)
    size = (2.6 + 3.4 * columns, 1.2 + rows * (0.9 + 0.19 * K))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    longest = max(group.curve.steps[-1] for group in groups)
    for group, axes in zip(groups, panels, strict=False):
        edges = np.concatenate([[0], group.curve.steps])
        success = group.curve.success.mean(axis=1).T  # (K, T)
        mesh = axes.pcolormesh(edges, np.arange(K + 1), success, vmin=0, vmax=1, cmap="viridis")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set(xlabel=_STEPS, xlim=(0, longest))  # half as long looks half as long
        axes.set_title(_with_runs(group), size=9, parse_math=False)
        axes.tick_params(length=0)
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    panels[0].set(yticks=np.arange(K) + 0.5, yticklabels=tasks, ylim=(K, 0))
    shrink = min(1, 4 / size[1])
    bar = figure.colorbar(
        mesh, ax=figure.axes, label="mean success", shrink=shrink, fraction=0.05, pad=0.02
    )
    bar.outline.set_visible(False)
    _title(figure, groups, "success by task over time")
    return figure


def save(figure: Figure, path: Path, dpi: int) -> list[Path]:
    """Write a figure as PNG and as SVG; return the two files.

    Args:
        figure: What to write.
        path: The files' name without the ending.
        dpi: The PNG's pixels per inch.

    Raises:
        OSError: They cannot be written.
    """
    files = []
    for ending, options in (("png", {"dpi": dpi}), ("svg", {"metadata": {"Date": None}})):
        drawn = io.BytesIO()
        figure.savefig(drawn, format=ending, **options)
        files.append(path.with_name(f"{path.name}.{ending}"))
        with replace_atomically(files[-1]) as file:
            file.write(drawn.getvalue())
    return files


def _band(group: Group, statistic: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the ends of the interval at each evaluation, ``(T,)`` each; None of a single run."""
    generator = np.random.default_rng(_SEED)
    ends = [
        bootstrap_interval(STATISTICS[statistic], scores, generator=generator, samples=_SAMPLES)
        for scores in group.curve.success
    ]
    known = np.array([pair for pair in ends if pair is not None])
    return (known[:, 0], known[:, 1]) if len(known) else None


def _look(index: int) -> tuple[str, str]:
    return _COLOURS[index % len(_COLOURS)], _MARKERS[index // len(_COLOURS) % len(_MARKERS)]


def _title(figure: Figure, groups: Sequence[Group], what: str) -> None:
    text = figure.suptitle(f"{tasks_title(groups)}: {what}\n{protocol(groups)}", size=9)
    text.set_parse_math(False)


def _legend(
    figure: Figure, handles: Sequence[Artist], groups: Sequence[Group], *, with_steps: bool = False
) -> None:
    labels = [_with_runs(group) for group in groups]
    if with_steps:
        steps = (int(group.curve.steps[-1]) for group in groups)
        labels = [f"{label}, {n:,} steps" for label, n in zip(labels, steps, strict=True)]
    columns = min(len(groups), 2 if with_steps else 3)
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a run's name may hold a dollar sign


def _with_runs(group: Group) -> str:
    count = len(group.runs)
    return f"{group.label} ({count} run{'s' if count > 1 else ''})"


def _at_steps(groups: Sequence[Group]) -> str:
    ends = {int(group.curve.steps[-1]) for group in groups}
    return f", after {ends.pop():,} steps" if len(ends) == 1 else ""
