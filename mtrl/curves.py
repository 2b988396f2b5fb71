"""Learning curves: evaluations read back from `metrics.jsonl`, of one run and of several.

T evaluations, R runs that differ in their seed only, K tasks.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from .errors import UserError
from .logging import read_metrics

_messages = logging.getLogger("mtrl")

_SUCCESS = "eval/success_rate/"


@dataclass(frozen=True)
class Budget:
    """What runs may take, to be compared by as much of it.

    Attributes:
        steps: Environment steps over all tasks.
        seconds: Wall clock, evaluations included.
    """

    steps: float = math.inf
    seconds: float = math.inf


@dataclass(frozen=True)
class RunCurve:
    """The evaluations of one run, oldest first.

    Attributes:
        task_names: K names.
        steps: Environment steps over all tasks, ``(T,)``, increasing.
        seconds: Wall clock of the training, evaluations included, ``(T,)``.
        success: Success rates, ``(T, K)``.
    """

    task_names: tuple[str, ...]
    steps: Int[np.ndarray, " T"]
    seconds: Float[np.ndarray, " T"]
    success: Float[np.ndarray, "T K"]

    def reached(self, threshold: float, within: Budget = Budget()) -> tuple[float, float]:
        """Return the steps and seconds of the first evaluation whose mean success is as high.

        Args:
            threshold: A success rate.
            within: Later evaluations do not count.

        Returns:
            Both are infinite if there is none.
        """
        in_time = (self.steps <= within.steps) & (self.seconds <= within.seconds)
        high = np.flatnonzero((self.success.mean(axis=1) >= threshold) & in_time)
        if not high.size:
            return np.inf, np.inf
        return float(self.steps[high[0]]), float(self.seconds[high[0]])


@dataclass(frozen=True)
class GroupCurve:
    """Several runs at the steps where all of them were evaluated.

    Attributes:
        task_names: K names.
        steps: Environment steps over all tasks, ``(T,)``, increasing.
        seconds: When each run got there, ``(T, R)``.
        success: Success rates, ``(T, R, K)``.
    """

    task_names: tuple[str, ...]
    steps: Int[np.ndarray, " T"]
    seconds: Float[np.ndarray, "T R"]
    success: Float[np.ndarray, "T R K"]

    def evaluations(self, within: Budget) -> int:
        """Return how many of the T evaluations come within a budget, on average over the runs."""
        in_time = (self.steps <= within.steps) & (self.seconds.mean(axis=1) <= within.seconds)
        return int(in_time.sum())  # steps and seconds increase


def read_curve(path: Path) -> RunCurve:
    """Read a run's evaluations from its `metrics.jsonl`.

    Tasks come in the order of the first evaluation. One that lacks a task, because none of its
    episodes could be played to the end, is left out: its mean would be that of other tasks.

    Raises:
        OSError: the file cannot be read.
        UserError: a line is damaged, no evaluation is complete, or the steps do not increase.
    """
    rows = [row for row in read_metrics(path) if any(key.startswith(_SUCCESS) for key in row)]
    tasks = list(dict.fromkeys(key for row in rows for key in row if key.startswith(_SUCCESS)))
    whole = [row for row in rows if all(row.get(task) is not None for task in tasks)]
    if not whole:
        raise UserError(
            f"`{path}` has no evaluation of all its tasks yet: give a run that has reached its "
            "first `--eval-every`"
        )
    if len(whole) < len(rows):
        _messages.warning(
            "`%s`: %d of %d evaluations lack a task and are left out",
            path,
            len(rows) - len(whole),
            len(rows),
        )
    curve = RunCurve(
        task_names=tuple(task.removeprefix(_SUCCESS) for task in tasks),
        steps=np.array([_number(path, row, "progress/env_steps", int) for row in whole]),
        seconds=np.array([_number(path, row, "time/seconds", float) for row in whole]),
        success=np.array([[_number(path, row, key, float) for key in tasks] for row in whole]),
    )
    if (np.diff(curve.steps) <= 0).any():
        raise UserError(f"`{path}` goes back in steps: give one file for each run")
    if (np.diff(curve.seconds) < 0).any():
        raise UserError(f"`{path}` goes back in time: restore the file")
    if not ((curve.success >= 0) & (curve.success <= 1)).all():
        raise UserError(f"`{path}` has a success rate outside of 0 to 1: restore the file")
    return curve


def at_common_steps(curves: Sequence[RunCurve], task_names: Sequence[str]) -> GroupCurve:
    """Put runs side by side, at the steps where all of them were evaluated.

    Nothing is interpolated or carried on: where one run alone was evaluated is left out, and a
    group ends where its shortest run does.

    Args:
        curves: R runs.
        task_names: K tasks that all of them have, in the order wanted.

    Raises:
        UserError: there is no such step.
    """
    steps = functools.reduce(np.intersect1d, (curve.steps for curve in curves))
    if not steps.size:
        raise UserError(
            "`RUN`: runs that were never evaluated at the same steps cannot form a group: "
            "name them apart, as in A=RUN B=RUN"
        )
    seconds, success = [], []
    for curve in curves:
        rows = np.searchsorted(curve.steps, steps)
        columns = np.array([curve.task_names.index(name) for name in task_names])
        seconds.append(curve.seconds[rows])
        success.append(curve.success[np.ix_(rows, columns)])
    return GroupCurve(
        tuple(task_names), steps, np.stack(seconds, axis=1), np.stack(success, axis=1)
    )


def _number(
    path: Path, row: Mapping[str, float | int | None], key: str, kind: type[int] | type[float]
) -> float | int:
    """Return what a line holds under a key.

    Raises:
        UserError: it is missing, or of another type.
    """
    value = row.get(key)
    if type(value) is int or (kind is float and type(value) is float):
        return kind(value)
    raise UserError(f"`{path}` has {key} = {value!r} in an evaluation: restore the file")
