"""Going on with a run from its newest good checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

import envs
from mtrl.checkpoint import load_latest
from mtrl.compiled import compiler_version
from mtrl.device import resolve_precision
from mtrl.errors import UserError
from mtrl.logging import JsonlLogger, Mark, read_metrics
from mtrl.provenance import library_versions, machine
from mtrl.run_directory import RunDirectory
from mtrl.run_record import flatten
from mtrl.train import Progress
from mtrl.types import State, Stateful

from .config import MAY_DIFFER_ON_RESUME, Config

_messages = logging.getLogger("mtrl")

_PRECISIONS = {"fp32": "float32", "tf32": "tf32", "bf16": "bfloat16"}
"""What checkpoints call them, the two that are types by the names of those."""


def latest_state(run: RunDirectory, config: Config) -> State | None:
    """Return the newest good checkpoint's state; none if the run was stopped before its first.

    Raises:
        UserError: If checkpoints are damaged, or missing though the run must have saved some:
            beginning again would throw its metrics away.
    """
    if not any(run.checkpoints_path.glob("step_*")):
        one_step = config.envs_per_task * len(_tasks(config))
        reached = last_logged_step(run)
        # The interval given now says nothing about what was saved under those before.
        intervals = [old.get("checkpoint_every") for old in run.earlier]
        every = min((n for n in intervals if isinstance(n, int)), default=config.checkpoint_every)
        if run.summary_path.exists() or reached >= every + one_step:
            raise UserError(
                f"`--resume`: {run.checkpoints_path} has no checkpoint, though the run came to "
                f"{reached} steps: put it back, or start another run in a new `--run-dir`."
            )
        _messages.info("no checkpoint was saved yet: the run starts from the beginning")
        return None
    checkpoint = load_latest(run.checkpoints_path, run=run.id)
    try:
        Progress.from_state(checkpoint.state["progress"])
        Mark.from_state(checkpoint.state["metrics"])
        if not isinstance(checkpoint.state["circumstances"], dict):
            raise TypeError("`circumstances` is no dictionary")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _misfit(run, error) from error
    refuse_other_settings(checkpoint.state, run)
    _messages.info("continuing from %s", checkpoint.path)
    _check_budget(Progress.from_state(checkpoint.state["progress"]), config)
    return checkpoint.state


def _check_budget(progress: Progress, config: Config) -> None:
    """Refuse a budget that is spent already, and say where there are no more steps to take.

    Raises:
        UserError: The run has gone beyond what is asked for, by more than its last step.
    """
    steps, one_step = progress.env_steps, config.envs_per_task * len(_tasks(config))
    if steps >= config.total_steps + one_step:
        raise UserError(
            f"`--total-steps` is {config.total_steps}, but the run has taken {steps}: give more."
        )
    if steps >= config.total_steps and not progress.evaluation_due:
        _messages.info("all %d steps are taken; to go on, give more --total-steps", steps)


def _tasks(config: Config) -> tuple[str, ...]:
    return envs.task_names(config.benchmark)


def open_metrics(run: RunDirectory, state: State | None) -> JsonlLogger:
    """Open a run's metrics where a state of it was saved, or where it begins without one."""
    progress = Progress() if state is None else Progress.from_state(state["progress"])
    mark = Mark() if state is None else Mark.from_state(state["metrics"])
    return JsonlLogger(run.metrics_path, mark=mark, precedes=progress.is_later_than)


def settings(config: Mapping[str, Any]) -> State:
    """Return what checkpoints have to be told of a run's configuration: what may not change."""
    return {name: value for name, value in config.items() if name not in MAY_DIFFER_ON_RESUME}


def refuse_other_settings(state: State, run: RunDirectory) -> None:
    """Compare the settings that a state was saved under with those in config.json.

    They do where either comes from another run, or was changed and its digest renewed. An option
    that a later version has added counts as its default where it is missing.

    Raises:
        UserError: If they differ; names each.
    """
    if not isinstance(state.get("settings"), dict):
        raise _misfit(run, ValueError("it has no settings"))
    defaults = flatten(settings(Config.without_options()))
    saved = defaults | flatten(state["settings"])
    now = defaults | flatten(settings(run.config))
    changes = [
        f"`--{name.rpartition('.')[2].replace('_', '-')}` {saved.get(name)} -> {now.get(name)}"
        for name in sorted(saved.keys() | now.keys())
        if name not in saved or name not in now or saved[name] != now[name]
    ]
    if changes:
        raise UserError(
            f"{run.config_path} has other settings than the checkpoint was saved under (saved -> "
            f"found): {', '.join(changes)}. It was changed: put the saved ones back."
        )


def restore(target: Stateful, state: State, run: RunDirectory) -> None:
    """Load a state.

    Raises:
        UserError: If it does not fit, as it was saved by another version of mtrl.
    """
    try:
        target.load_state_dict(state)
    except Exception as error:  # whatever the parts make of numbers that are not theirs
        raise _misfit(run, error) from error


def tell_differences(state: State, run: RunDirectory, device: torch.device, compiles: bool) -> None:
    """Say if the run cannot go on to the bit, since something that computes has changed."""
    before, now = state["circumstances"], circumstances(run, device, compiles)
    changes = [
        f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]
    ]
    if changes:
        _messages.warning(
            "not bit for bit as it would have been without the stop: %s", ", ".join(changes)
        )


def circumstances(
    run: RunDirectory, device: torch.device, compiles: bool
) -> dict[str, str | int | None]:
    """Return what decides how numbers round; the count of simulation threads does not."""
    return {
        **library_versions(),
        "cpu": machine()["cpu"],
        # One processor's name stands for many, and a virtual machine may hide some of what it can.
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": _PRECISIONS[resolve_precision(run.config["precision"], device)],
        "learner threads": torch.get_num_threads(),
        "compiled by": compiler_version(device) if compiles else None,
    }


def last_logged_step(run: RunDirectory) -> int:
    """Return how many environment steps the run's metrics tell of."""
    rows = read_metrics(run.metrics_path) if run.metrics_path.exists() else []
    return max((int(row.get("progress/env_steps") or 0) for row in rows), default=0)


def _misfit(run: RunDirectory, error: Exception) -> UserError:
    return UserError(
        f"the checkpoint in {run.checkpoints_path} does not fit this version of mtrl "
        f"({error!r}): use the version that {run.config_path.name} names."
    )
