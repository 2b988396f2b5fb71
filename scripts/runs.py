"""From what a user names on the command line to groups of runs: one group, several seeds."""

from __future__ import annotations

import glob
import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtrl.curves import GroupCurve, RunCurve, at_common_steps, read_curve
from mtrl.errors import UserError
from mtrl.run_record import MAX_CONFIG_BYTES, flatten

from .config import MAY_DIFFER_ON_RESUME, Config

_messages = logging.getLogger("mtrl")

_METRICS = "metrics.jsonl"
_SAME_LEARNING = MAY_DIFFER_ON_RESUME | {"seed", "preset"}  # whose options are all spelled out
_MACHINE = {"cpu", "cores"}
_MAX_NAMED = 3
_Key = tuple[str, str]
"""A group's name, empty if the user gave none; then what its runs have in common."""


@dataclass(frozen=True)
class Run:
    """What is kept of a run.

    Attributes:
        path: Its `metrics.jsonl`, whatever that is called.
        curve: The evaluations in it.
        record: What `config.json` says, by section: "config", "versions", "machine". Empty if there
            is none.
    """

    path: Path
    curve: RunCurve
    record: Mapping[str, dict[str, Any]]

    @property
    def options(self) -> dict[str, Any]:
        """The options that decide what is learned, but for the seed, by dotted names.

        In a run that is older than an option, it counts as what changes nothing.
        """
        if not self.record.get("config"):
            return {}
        flat = flatten(Config.without_options()) | flatten(self.record["config"])
        return {name: value for name, value in flat.items() if name not in _SAME_LEARNING}

    @property
    def seed(self) -> int | None:
        """The run's seed, where it is known."""
        seed = self.record.get("config", {}).get("seed")
        return seed if type(seed) is int else None

    @property
    def machine(self) -> str:
        """The GPU, unless the run was to do without, processor and cores; empty where unknown."""
        machine = self.record.get("machine", {})
        if not machine.keys() >= _MACHINE:
            return ""
        cores = machine["cores"]
        usable = machine.get("usable_cores", cores)
        parts = [
            str(machine["cpu"]),
            f"{cores} cores" if usable == cores else f"{usable} of {cores} cores",
        ]
        # A run from before there was a note of GPUs is told by its processor.
        if machine.get("gpu") and self.record["config"].get("device") != "cpu":
            parts.insert(0, machine["gpu"])
        return ", ".join(parts)

    @property
    def family(self) -> str:
        """The run's name without seed and date."""
        name = self.path.resolve().parent.name if self.path.name == _METRICS else self.path.stem
        undated = re.sub(r"_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?$", "", name)
        return re.sub(r"[_-]?seed[_-]?\d+", "", undated) or name


@dataclass(frozen=True)
class Group:
    """Runs that are seeds of one another.

    Attributes:
        label: What pictures and tables call it.
        runs: R runs.
        curve: Their evaluations at common steps.
    """

    label: str
    runs: tuple[Run, ...]
    curve: GroupCurve


def read_groups(arguments: Sequence[str]) -> list[Group]:
    """Read the runs and put seeds of one another together.

    A group is what was given one name as `NAME=RUN`; else the runs whose configurations differ in
    nothing that is learned from but the seed; without a configuration, those whose names differ
    in `_seed<number>` and the date only.

    Args:
        arguments: Each a run's directory or a `metrics.jsonl`, or `NAME=RUN`, where `RUN` may be
            a pattern, since no shell expands it there.

    Returns:
        Groups in the order of their first run, tasks in the order of the first group.

    Raises:
        UserError: naming the run that is missing, damaged, without evaluations, given twice, or
            of other tasks than the first.
    """
    if not arguments:
        raise UserError("`RUN` is missing: give run directories or metrics.jsonl files")
    members: dict[_Key, list[Run]] = {}
    seen: set[Path] = set()
    for argument in arguments:
        name, paths = _resolve(argument)
        for path in paths:
            if path.resolve() in seen:
                raise UserError(f"`RUN` {path} is given twice: it would count as two seeds")
            seen.add(path.resolve())
            run = _read(path)
            likeness = json.dumps(run.options, sort_keys=True) if run.options else run.family
            members.setdefault((name, "" if name else likeness), []).append(run)
    tasks = _tasks([run for group in members.values() for run in group])
    groups = [
        Group(label, tuple(group), at_common_steps([run.curve for run in group], tasks))
        for label, group in zip(_labels(members), members.values(), strict=True)
    ]
    for group in groups:
        _warn_of_equal_seeds(group)
        _warn_of_what_is_left_out(group)
    return groups


def _warn_of_equal_seeds(group: Group) -> None:
    """Say so if two runs of a group have the same seed: on one machine they are one run."""
    seeds = Counter(run.seed for run in group.runs if run.seed is not None)
    if again := sorted(seed for seed, count in seeds.items() if count > 1):
        _messages.warning(
            "%s has more than one run with seed %s, which may be copies of one another: intervals "
            "take them for independent",
            group.label,
            ", ".join(map(str, again)),
        )


def _warn_of_what_is_left_out(group: Group) -> None:
    """Say so if a run goes on where the group ends, with its shortest run."""
    end = group.curve.steps[-1]
    if longer := [run for run in group.runs if run.curve.steps[-1] > end]:
        _messages.warning(
            "%s ends after %s steps, with the last evaluation that all of its runs have; %s went "
            "on, to %s at most: name them apart to see the rest",
            group.label,
            f"{end:,}",
            f"{len(longer)} of {len(group.runs)}",
            f"{max(run.curve.steps[-1] for run in longer):,}",
        )


def tasks_title(groups: Sequence[Group]) -> str:
    """Return the benchmark's name if all runs agree on one, else those of its tasks if few."""
    names = groups[0].curve.task_names
    benchmark = _agreed(groups, "config", "benchmark")
    few = benchmark if isinstance(benchmark, list) else names
    return ", ".join(map(str, few)) if len(few) <= _MAX_NAMED else f"{len(names)} tasks"


def protocol(groups: Sequence[Group]) -> str:
    """Say under which protocol success was measured, as far as it is known of all runs."""
    parts = []
    if not any(name.startswith("toy-") for name in groups[0].curve.task_names):
        if version := _agreed(groups, "versions", "metaworld"):
            parts.append(f"Meta-World {version}")
        if reward := _agreed(groups, "config", "reward_version"):
            parts.append(f"{str(reward).upper()} rewards")
    return ", ".join([*parts, "each goal once", "deterministic actions", "success at any step"])


def _agreed(groups: Sequence[Group], section: str, name: str) -> Any:
    """Return what the records of all runs say, or None if they differ or do not say."""
    said = [run.record.get(section, {}).get(name) for group in groups for run in group.runs]
    return said[0] if all(value == said[0] for value in said) else None


def _resolve(argument: str) -> tuple[str, list[Path]]:
    """Split `NAME=RUN` and find the files meant; the name is empty if there is none."""
    if Path(argument).exists() or "=" not in argument:
        return "", [_metrics(Path(argument))]
    name, _, pattern = argument.partition("=")
    if not name or not pattern:
        raise UserError(f"`RUN` {argument} lacks a side of its `=`: write NAME=RUN")
    found = sorted(glob.glob(pattern))  # noqa: PTH207, which refuses absolute patterns
    return name, [_metrics(Path(path)) for path in found or [pattern]]


def _metrics(path: Path) -> Path:
    remedy = "give a run's directory, or its metrics.jsonl"
    if path.is_dir():
        if not (path / _METRICS).is_file():
            raise UserError(f"`RUN` {path} has no {_METRICS}: {remedy}")
        return path / _METRICS
    if not path.is_file():
        if glob.has_magic(str(path)):
            remedy += ", or NAME=PATTERN"
        raise UserError(f"`RUN` {path} does not exist: {remedy}")
    return path


def _read(path: Path) -> Run:
    try:
        return Run(path, read_curve(path), _record(path))
    except OSError as error:
        raise UserError(
            f"`RUN` {path} cannot be read ({error.strerror}): make it readable"
        ) from error


def _record(path: Path) -> dict[str, dict[str, Any]]:
    """Return what was written down about a run, beside its metrics; empty if nothing was.

    That is config.json in a run's directory. A curve kept under another name has it in a file of
    the same name that ends in .json, under "run".

    Raises:
        UserError: the file is damaged.
    """
    in_run = path.name == _METRICS
    file = path.with_name("config.json") if in_run else path.with_suffix(".json")
    if not file.is_file():
        return {}
    try:
        if (size := file.stat().st_size) > MAX_CONFIG_BYTES:
            raise ValueError(f"{size} bytes")
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"`{file}` is damaged ({error}): restore or remove it") from error
    record = found if in_run or not isinstance(found, dict) else found.get("run")
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        return {}
    return {section: content for section, content in record.items() if isinstance(content, dict)}


def _tasks(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the tasks of the first run, which must be those of all.

    Raises:
        UserError: a run has others.
    """
    first = runs[0]
    for run in runs[1:]:
        differing = set(run.curve.task_names) ^ set(first.curve.task_names)
        if differing:
            raise UserError(
                f"`RUN` {run.path} and {first.path} have different tasks: "
                f"{_few(sorted(differing))} in one of them only; give runs of the same tasks"
            )
    return first.curve.task_names


def _labels(members: Mapping[_Key, Sequence[Run]]) -> list[str]:
    """Name groups as the user did, else as their runs are called, else by how they differ."""
    families = [sorted({run.family for run in runs}) for runs in members.values()]
    configured = [
        options for (name, _), runs in members.items() if not name and (options := runs[0].options)
    ]
    labels: list[str] = []
    for ((name, _), runs), family in zip(members.items(), families, strict=True):
        telling = len(family) == 1 and families.count(family) == 1
        label = name or (not telling and _differences(runs[0].options, configured))
        label = label or " / ".join(family)
        labels.append(f"{label} ({labels.count(label) + 1})" if label in labels else label)
    return labels


def _differences(options: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """Tell what a configuration has otherwise than others, in a few words."""
    absent = object()
    differing = [
        f"{name.rpartition('.')[2]} {value}"
        for name, value in options.items()
        if any(other.get(name, absent) != value for other in others)
    ]
    return _few(differing)


def _few(words: Collection[str]) -> str:
    shown = list(words)[:_MAX_NAMED]
    return ", ".join([*shown, "..."] if len(words) > _MAX_NAMED else shown)
