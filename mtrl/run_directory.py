"""A directory per run: what it was asked to do, what it measured, what it learned.

A run directory holds:

    config.json      the configuration, with versions, machine and a SHA-256 of all that
    metrics.jsonl    one line per log step
    summary.json     the final figures
    checkpoints/     see `checkpoint`
    wandb/           files of wandb
    faults/          what a run saw that numbers ended that were not finite
    lock, lock.json  see `run_lock`
"""

import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import UserError
from .files import write_json_atomic
from .run_lock import RunLock
from .run_record import as_json, find_changes, flatten, local_time, make_record, read_record

_CONFIG = "config.json"
_WRITTEN = (
    *(_CONFIG, "metrics.jsonl", "checkpoints", "faults", "lock"),
    *("wandb", "wandb/helper.log", "wandb/run_id"),
)
"""What is written in place: a link there would lead out of the directory."""

_logger = logging.getLogger("mtrl")


@dataclass(frozen=True)
class _Change:
    """A configuration that a run goes on with: what differs, in words, and its record."""

    options: list[str]
    record: dict[str, Any]


class RunDirectory:
    """The files of one run; made by `create`, `resume` or `open_existing`.

    A context manager: leaving it gives up the lock.

    Attributes:
        path: the directory.
        config: the configuration as stored, so with lists for tuples.
        id: what its checkpoints are known by, wherever the directory is moved.
        earlier: the configurations that were stored before it was opened, oldest first.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        run_id: str,
        lock: RunLock | None,
        earlier: Sequence[dict[str, Any]] = (),
        changed: "_Change | None" = None,
    ) -> None:
        self.path = path
        self.config = config
        self.id = run_id
        self.earlier = earlier
        self._lock = lock
        self._changed = changed

    @classmethod
    def create(
        cls,
        path: Path | None,
        config: Mapping[str, Any],
        *,
        root: Path = Path("runs"),
        default_name: str,
    ) -> "RunDirectory":
        """Start a run in a directory that holds nothing yet.

        Args:
            path: the directory; None makes `root/<default_name>_<date>_<time>`, with a number
                added if that is taken.
            config: what JSON can hold, in nested mappings.
            root: where directories with default names go.
            default_name: what the default name begins with.

        Raises:
            UserError: the directory holds something, belongs to a running process, or cannot be
                written.
        """
        run_id = uuid.uuid4().hex
        try:
            path = _make_default(root, default_name) if path is None else _make(path)
            _refuse_links(path)
            lock = RunLock(path)
            try:
                if _contents(path):  # another process was faster
                    raise _taken(path)
                write_json_atomic(path / _CONFIG, make_record(config, [], run_id))
            except BaseException:
                lock.release()
                raise
        except OSError as error:
            raise UserError(
                f"`--run-dir` {path or root} cannot be written ({error.strerror}): "
                "name a directory that you may write to"
            ) from error
        return cls(path, as_json(config), run_id, lock)

    @classmethod
    def resume(
        cls,
        path: Path,
        config: Mapping[str, Any],
        *,
        may_differ: frozenset[str] = frozenset(),
        defaults: Mapping[str, Any] | None = None,
        renewed: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> "RunDirectory":
        """Go on with a run, under the same configuration.

        Args:
            path: the run's directory.
            config: the configuration asked for now.
            may_differ: dotted keys ("logging.wandb") that may differ from the stored configuration.
                Such a change is stored by `keep_changes`.
            defaults: what a key counts as that the stored configuration lacks, as one does that a
                later version has added.
            renewed: spells a stored configuration as it is spelt now.

        Raises:
            UserError: there is no run, its config.json is damaged, the configuration differs in
                other keys, or another process is writing there.
        """
        _read_record(path)  # before anything is written into a directory that may not be a run
        changed = None
        try:
            lock = RunLock(path)
            try:
                record = _read_record(path)
                given = as_json(config)
                earlier = [old["config"] for old in [*record["history"], record]]
                stored = flatten(as_json(defaults or {})) | flatten(renewed(record["config"]))
                changes = find_changes(path, stored, flatten(given), may_differ)
                if record["config"] != given:
                    history = [*record.pop("history"), record]
                    changed = _Change(changes, make_record(config, history, record["id"]))
            except BaseException:
                lock.release()
                raise
        except OSError as error:
            raise _not_to_be_added_to(path, error) from error
        return cls(path, given, record["id"], lock, earlier, changed)

    @classmethod
    def open_existing(cls, path: Path) -> "RunDirectory":
        """Open a run for reading, whether or not a process is writing to it.

        Raises:
            UserError: there is no run, or its config.json is damaged.
        """
        record = _read_record(path)
        return cls(path, record["config"], record["id"], lock=None)

    def keep_changes(self) -> None:
        """Store and tell of the configuration that a run goes on with, where it is another.

        The earlier ones are kept under "history". It is for whoever resumes to say when: what is
        refused because of a checkpoint, say, must leave the run as it was.

        Raises:
            UserError: it cannot be written.
        """
        if self._changed is None:
            return
        for change in self._changed.options:
            _logger.info("resumed with a changed setting: %s", change)
        try:
            write_json_atomic(self.config_path, self._changed.record)
        except OSError as error:
            raise _not_to_be_added_to(self.path, error) from error
        self._changed = None

    @property
    def config_path(self) -> Path:
        """Configuration, versions and machine, as JSON."""
        return self.path / _CONFIG

    @property
    def metrics_path(self) -> Path:
        """One JSON object per log step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints_path(self) -> Path:
        """Directory for `save_checkpoint`."""
        return self.path / "checkpoints"

    @property
    def summary_path(self) -> Path:
        """The final figures, as JSON."""
        return self.path / "summary.json"

    @property
    def wandb_path(self) -> Path:
        """Directory for wandb's files."""
        return self.path / "wandb"

    def fault(self) -> str | None:
        """Say what has become of the directory, if nothing can be stored there any more."""
        if not self.config_path.is_file():
            return "it is no longer there"
        if not os.access(self.path, os.W_OK):
            return "it may not be written any more"
        if link := _find_link(self.path):
            return f"{link} in it has become a symbolic link"
        return None

    def close(self) -> None:
        """Give up the lock; may be called twice."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of the run in directory `path`.

    Raises:
        UserError: there is no run, or its config.json is damaged.
    """
    config: dict[str, Any] = _read_record(path)["config"]
    return config


def _read_record(path: Path) -> dict[str, Any]:
    file = path / _CONFIG
    _refuse_links(path)
    if not file.is_file():
        what = f"has no {_CONFIG}" if path.is_dir() else "does not exist"
        if path.is_file():
            what = "is a file"
        raise UserError(f"run directory {path} {what}: give the directory of an earlier run")
    return read_record(file)


def _find_link(path: Path) -> str | None:
    return next((name for name in _WRITTEN if (path / name).is_symlink()), None)


def _refuse_links(path: Path) -> None:
    if link := _find_link(path):
        raise UserError(
            f"{path / link} is a symbolic link, which may lead out of the run directory: put what "
            "it leads to in its place. The run directory itself may be a link"
        )


def _make_default(root: Path, name: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    stem = f"{name}_{local_time():%Y-%m-%d_%H-%M-%S}"
    path, number = root / stem, 1
    while True:
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
            path = root / f"{stem}_{number}"


def _make(path: Path) -> Path:
    if path.exists() and (not path.is_dir() or _contents(path)):
        raise _taken(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _contents(path: Path) -> bool:
    """Whether a directory holds more than what a run killed at birth leaves behind."""
    return any(entry.name not in RunLock.FILES for entry in path.iterdir())


def _taken(path: Path) -> UserError:
    if not path.is_dir():
        return UserError(f"`--run-dir` {path} is not a directory: give another name")
    return UserError(
        f"`--run-dir` {path} is not empty: give another name, or add `--resume` to go on with a run"
    )


def _not_to_be_added_to(path: Path, error: OSError) -> UserError:
    return UserError(
        f"`--run-dir` {path} cannot be written ({error.strerror}): resuming adds to it, so copy "
        "the run to where you may write"
    )
