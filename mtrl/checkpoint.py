"""Durable training state: safetensors and JSON, verified on the way out and on the way in.

A checkpoint is a directory that appears whole or not at all:

    step_000000012345/
        tensors.safetensors   every array, under its path in the state ("agent/actor/0.weight")
        state.json            the structure of the state, and its scalars
        manifest.json         written last: format, environment steps, size and SHA-256 of each file

What a state may hold is in `state_tree`.
"""

import logging
import math
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import UserError
from .files import fsync_directory, write_json_atomic
from .manifest import (
    CheckpointError,
    Label,
    read_json,
    read_label,
    verify_manifest,
    write_manifest,
)
from .state_tree import bits, pack, unpack
from .types import State

__all__ = [
    "CheckpointError",
    "LoadedCheckpoint",
    "generator_state",
    "load_best",
    "load_checkpoint",
    "load_latest",
    "save_checkpoint",
    "set_generator_state",
]

TENSORS, STATE = "tensors.safetensors", "state.json"
MAX_STATE_BYTES = 16 << 20

_NAME = re.compile(r"step_(?P<env_steps>\d{12,})(?P<replaced>\.old)?")
_TEMPORARY = ".incomplete_"

_UNPACKING_ERRORS = (
    *(OSError, SafetensorError),
    *(AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError),
)

_logger = logging.getLogger("mtrl")


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A verified checkpoint.

    Attributes:
        state: what `save_checkpoint` was given, or the sections asked for. CPU tensors and arrays
            are private views of the file: copy them into place rather than keeping them.
        label: what its manifest says.
        path: the directory it was read from.
    """

    state: State
    label: Label
    path: Path


def save_checkpoint(
    directory: Path,
    state: State,
    *,
    env_steps: int,
    run: str = "",
    score: float | None = None,
    keep_last: int = 2,
    keep_best: int = 1,
) -> Path:
    """Write `directory/step_<env_steps>`; keep the newest and the best checkpoints, remove others.

    Whatever happens on the way (a full disk, a kill, a power cut), the checkpoints that were there
    stay until the new one is on disk and reads back equal to `state`. One process may save into a
    directory at a time, and nothing may change `state` meanwhile.

    Args:
        directory: made if it is missing.
        state: see `state_tree`. Tensors that share memory are stored separately.
        env_steps: environment steps so far over all tasks; a checkpoint of the same is replaced.
        run: whose checkpoint it is.
        score: how well its agent was evaluated, if it was.
        keep_last: how many of the newest checkpoints stay, the new one included.
        keep_best: how many more stay, those of the highest score; of equal ones the newest.

    Returns:
        The directory of the new checkpoint.

    Raises:
        CheckpointError: the file system refuses.
        TypeError: `state` holds something that has no form here; the message names its path.
        ValueError: `env_steps` or `keep_best` is negative, or `keep_last` is not positive.
    """
    if env_steps < 0 or keep_last < 1 or keep_best < 0:
        raise ValueError(
            "`env_steps` and `keep_best` must be at least 0 and `keep_last` at least 1, "
            f"got {env_steps}, {keep_best} and {keep_last}"
        )
    structure, arrays = pack(state)
    final = directory / f"step_{env_steps:012d}"
    temporary = directory / f"{_TEMPORARY}{final.name}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob(f"{_TEMPORARY}*"):
            _delete(leftover)
        temporary.mkdir()
        try:
            _write(temporary, structure, arrays, Label(env_steps, run, score))
            _move_into_place(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint `{final}` cannot be written ({error}): free some space or choose another "
            "`--run-dir`; earlier checkpoints are untouched"
        ) from error
    _remove_old(directory, final, keep_last, keep_best)
    return final


def load_checkpoint(
    path: Path, *, device: torch.device | str = "cpu", only: Iterable[str] | None = None
) -> LoadedCheckpoint:
    """Read one checkpoint after verifying all of it.

    Args:
        path: the checkpoint's directory.
        device: where tensors go; NumPy arrays stay NumPy arrays. Generator states are tensors as
            well, and `torch.Generator.set_state` wants them on the CPU whatever its own device.
        only: the top-level sections to read, so that evaluation need not load the replay.

    Raises:
        CheckpointError: something is missing, damaged, or newer than this program.
    """
    label = verify_manifest(path, (TENSORS, STATE))
    try:
        sections = read_json(path / STATE, MAX_STATE_BYTES)["dict"]
        if only is not None:
            sections = _select(sections, only, path / STATE)
        # The header is parsed only now: the digest vouches for it.
        with safe_open(path / TENSORS, framework="pt") as arrays:
            state = unpack({"dict": sections}, _each_once(arrays), device)
    except _UNPACKING_ERRORS as error:
        raise CheckpointError(f"checkpoint `{path}` cannot be restored: {error!r}") from error
    return LoadedCheckpoint(state, label, path)


def load_latest(
    directory: Path,
    *,
    run: str | None = None,
    device: torch.device | str = "cpu",
    only: Iterable[str] | None = None,
) -> LoadedCheckpoint:
    """Read the newest good checkpoint in `directory`; newer ones that are not are warned about.

    Args:
        directory: where `save_checkpoint` saved.
        run: whose checkpoint it must be; None for anyone's.
        device: see `load_checkpoint`.
        only: see `load_checkpoint`.

    Raises:
        UserError: there is no good one.
    """
    return _load_first(_checkpoints(directory), directory, run, device, only)


def load_best(
    directory: Path,
    *,
    run: str | None = None,
    device: torch.device | str = "cpu",
    only: Iterable[str] | None = None,
) -> LoadedCheckpoint:
    """Read the good checkpoint in `directory` whose agent was evaluated with the highest score.

    Of equal ones it is the newest. For the arguments see `load_latest`.

    Raises:
        UserError: there is no good one, or none was saved right after an evaluation.
    """
    paths = _checkpoints(directory)
    scored = [path for path in paths if _score(path) > -math.inf]
    if paths and not scored:
        raise UserError(
            f"no checkpoint in `{directory}` was saved right after an evaluation: leave out "
            "`--best`, or train with a `--checkpoint-every` that is an `--eval-every`"
        )
    # Stable: of equal scores the newest stays first.
    return _load_first(sorted(scored, key=_score, reverse=True), directory, run, device, only)


def _load_first(
    paths: Sequence[Path],
    directory: Path,
    run: str | None,
    device: torch.device | str,
    only: Iterable[str] | None,
) -> LoadedCheckpoint:
    """Read the first good one; see `load_latest`."""
    only = None if only is None else tuple(only)
    faults = []
    strangers = []
    for path in paths:
        try:
            loaded = load_checkpoint(path, device=device, only=only)
            if run is not None and loaded.label.run != run:
                strangers.append(loaded.label.run)
                raise CheckpointError(f"`{path}` belongs to another run")
        except CheckpointError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            _logger.warning("skipped a checkpoint: %s; using %s", fault, path.name)
        return loaded
    if len(faults) == len(strangers) and len(set(strangers)) == 1:
        raise UserError(
            f"all checkpoints in `{directory}` belong to one run, and config.json to another: put "
            "back the config.json that this run began with"
        )
    found = "; ".join(faults) if faults else "there is none"
    raise UserError(
        f"no usable checkpoint in `{directory}`: {found}. "
        "Put a good one back, or train again in another directory"
    )


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """The state of a NumPy generator as plain dicts, lists, strings and integers."""
    state: dict[str, Any] = _without_arrays(generator.bit_generator.state)
    return state


def set_generator_state(generator: np.random.Generator, state: dict[str, Any]) -> None:
    """Continue where `generator_state` was taken.

    Raises:
        ValueError: the state is that of another kind of bit generator.
    """
    generator.bit_generator.state = state


def _without_arrays(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_arrays(value) for key, value in node.items()}
    return node.tolist() if isinstance(node, np.ndarray) else node


def _write(directory: Path, structure: Any, arrays: dict[str, torch.Tensor], label: Label) -> None:
    save_file(arrays, directory / TENSORS)
    with safe_open(directory / TENSORS, framework="pt") as stored:
        for name, tensor in arrays.items():
            if not torch.equal(bits(stored.get_tensor(name)), bits(tensor)):
                raise OSError(f"{TENSORS}: `{name}` differs when read back")
    write_json_atomic(directory / STATE, structure)
    if (directory / STATE).stat().st_size > MAX_STATE_BYTES:
        raise OSError(f"{STATE} is larger than {MAX_STATE_BYTES} bytes: put bulk data into arrays")
    write_manifest(directory, (TENSORS, STATE), label)


def _move_into_place(temporary: Path, final: Path) -> None:
    # A directory cannot be renamed over another one. Between the two renames `load_latest` finds
    # the earlier checkpoint under its ".old" name.
    if final.exists():
        replaced = final.with_name(f"{final.name}.old")
        if replaced.exists():
            _remove(replaced)
        final.rename(replaced)
    temporary.rename(final)
    fsync_directory(final.parent)


def _checkpoints(directory: Path) -> list[Path]:
    """Checkpoints by name, newest first; of the same step, the replaced one last."""
    found = []
    for path in directory.iterdir() if directory.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            found.append((int(match["env_steps"]), match["replaced"] is None, path))
    return [path for *_, path in sorted(found, reverse=True)]


def _remove_old(directory: Path, newest: Path, keep_last: int, keep_best: int) -> None:
    paths = _checkpoints(directory)
    if newest not in paths:  # somebody has just moved the run's directory away
        return
    # One that claims to be newer is one that resuming has skipped as damaged: it goes first.
    later = paths[: paths.index(newest)]
    kept: set[str] = set()
    others = []
    for path in paths[len(later) :] + later:
        if len(kept) < keep_last and path.stem not in kept:
            kept.add(path.stem)
        else:
            others.append(path)
    others.sort(key=_score, reverse=True)  # stable: of equal scores the newest stays
    best = [path for path in others if path.stem not in kept and _score(path) > -math.inf]
    for path in others:
        if path not in best[:keep_best]:
            try:
                _remove(path)
            except OSError as error:  # an old checkpoint too many is no reason to stop training
                _logger.warning("old checkpoint `%s` cannot be removed: %s", path, error)


def _score(path: Path) -> float:
    try:
        score = read_label(path).score
    except CheckpointError:
        return -math.inf
    return -math.inf if score is None else score


def _remove(path: Path) -> None:
    # Renamed first: a kill half-way must not leave something that looks like a damaged checkpoint.
    doomed = path.with_name(f"{_TEMPORARY}{path.name}.removed")
    path.rename(doomed)
    _delete(doomed)


def _delete(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)


def _each_once(arrays: Any) -> Callable[[str], torch.Tensor]:
    """Hand out each tensor once, so that a small file cannot name a large one a million times."""
    left = set(arrays.keys())

    def get_tensor(name: str) -> torch.Tensor:
        left.remove(name)
        tensor: torch.Tensor = arrays.get_tensor(name)
        return tensor

    return get_tensor


def _select(sections: Any, only: Iterable[str], file: Path) -> dict[str, Any]:
    wanted = list(only)
    if missing := [name for name in wanted if name not in sections]:
        raise CheckpointError(f"`{file}` has no section {', '.join(missing)}")
    return {name: sections[name] for name in wanted}
