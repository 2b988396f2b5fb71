"""Where numbers go: `metrics.jsonl`, the source of truth, and the fan-out to every other logger."""

import contextlib
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import replace_atomically
from .types import Logger, State

_messages = logging.getLogger("mtrl")

# About ten hours of a disk being full, at one 10 kB line (fifty tasks) every ten seconds.
_BACKLOG_BYTES = 32 * 2**20


def _to_json_number(value: float | int) -> float | int | None:
    """Return an int or a finite float; `None` for NaN and infinities, which JSON cannot hold."""
    number = value if type(value) is int else float(value)
    return number if math.isfinite(number) else None


def _complete_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each line with what it holds, leaving out a last line that a crash cut short."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise UserError(
                    f"`{path}` is damaged in line {number} ({error}): remove or mend that line"
                ) from error
            yield line, row


def read_metrics(path: Path) -> list[dict[str, float | int | None]]:
    """Read the lines of a `metrics.jsonl`, oldest first; `None` stands for a non-finite number.

    The file of a running training can be read: a last line that is not all there is left out.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: a line other than the last is not JSON.
    """
    return [row for _, row in _complete_lines(path)]


@dataclass(frozen=True)
class Mark:
    """How far a file of metrics had been written: so many bytes, with this SHA-256."""

    size: int = 0
    sha256: str = hashlib.sha256().hexdigest()

    @classmethod
    def from_state(cls, state: State) -> "Mark":
        """Rebuild what `vars` gave.

        Raises:
            ValueError: it is something else.
        """
        if {name: type(value) for name, value in state.items()} != {"size": int, "sha256": str}:
            raise ValueError(f"`metrics` is {state!r}")
        if state["size"] < 0:
            raise ValueError(f"`metrics` has size {state['size']}")
        return cls(**state)

    def matches(self, content: bytes) -> bool:
        """Tell whether a file with this content begins as the marked one did."""
        return hashlib.sha256(content[: self.size]).hexdigest() == self.sha256


class JsonlLogger:
    """Appends one flat JSON object a line; a NaN or an infinity is written as `null`.

    A line is handed to the operating system in one write, so a process that is killed leaves at
    most one partial line, at the end, which the next logger of that file removes. While the disk
    is full or the file out of reach, lines wait in memory and training goes on. Where the file is
    removed or replaced, one warning says so, and lines go on in what the path names then.

    Args:
        path: The file, created if missing; its directory must exist.
        mark: For a run that goes on: where the file ended when its checkpoint was saved. What
            follows is removed, since it will be written again. Without one, all lines stay.
        precedes: Tells of a line whether it was written before that checkpoint; by default, each
            was. This decides where the file no longer begins as it did, which is warned about.

    Attributes:
        mark: where the lines ended when they were last known to be durable.

    Raises:
        OSError: the file cannot be opened for writing, or rewritten, or is a symbolic link.
        UserError: a line to be kept is not JSON; the file is left as it is.
    """

    def __init__(
        self,
        path: Path,
        *,
        mark: Mark | None = None,
        precedes: Callable[[Mapping[str, Any]], bool] | None = None,
    ):
        self._path = path
        self._pending = bytearray()
        self._begun = b""  # what is on file already of the first line that is waiting
        self._dropped = 0
        self._warned = False
        self._closed = False
        self._descriptor = -1
        self._open(_mend(path, mark, precedes))
        self.mark = self._end()

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Append one line, after those that are still waiting."""
        row = {name: _to_json_number(value) for name, value in metrics.items()}
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        if len(self._pending) + len(line) > _BACKLOG_BYTES:
            self._dropped += 1
        else:
            self._pending += line
        self._write_pending()

    def flush(self) -> Mark:
        """Make every line so far durable, and return where they end.

        Raises:
            OSError: some of them cannot be written now; they go on waiting.
        """
        self._write_pending()
        if self._warned:
            waiting = self._pending.count(b"\n")
            raise OSError(f"`{self._path}` cannot be written: {waiting} lines are waiting")
        os.fsync(self._descriptor)
        self.mark = self._end()
        return self.mark

    def close(self) -> None:
        """Write what is waiting, make the file durable, close it. May be called twice."""
        if self._closed:
            return
        self._write_pending()
        self._closed = True
        lost = self._dropped + self._pending.count(b"\n")
        if lost:
            _messages.error("`%s` lacks %d lines: they could not be written", self._path, lost)
        with contextlib.suppress(OSError):
            os.fsync(self._descriptor)
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = -1

    def _write_pending(self) -> None:
        # A full disk may take the first half of a line. Exactly the other half is tried next time,
        # so that the file never holds a broken line in its middle.
        try:
            if not self._closed and not self._is_open():
                self._follow()
            while self._pending:
                written = bytes(self._pending[: os.write(self._descriptor, self._pending)])
                self._account(written)
                self._begun = (self._begun + written).rpartition(b"\n")[2]
                del self._pending[: len(written)]
            if self._warned:
                _messages.info("`%s` can be written again", self._path)
            self._warned = False
        except OSError as error:
            if not self._warned:
                _messages.warning(
                    "cannot write `%s` (%s): training goes on, the lines wait in memory",
                    self._path,
                    error.strerror,
                )
            self._warned = True

    def _is_open(self) -> bool:
        """Tell whether the path still names the file that is open."""
        try:
            return os.path.samestat(os.lstat(self._path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def _follow(self) -> None:
        """Go on in the file that the path names now; a new one, if only the directory is there."""
        before, old = self._lines, self._descriptor
        content = _read(self._path)
        kept = _whole_lines(content)
        _replace(self._path, content, kept)
        self._open(kept)
        with contextlib.suppress(OSError):
            os.close(old)
        self._pending[:0], self._begun = self._begun, b""  # the half that the old file has
        _messages.warning(
            "`%s` was removed or replaced: the %d lines so far went with the old file, and what is "
            "there now has %d; training goes on there",
            self._path,
            before,
            self._lines,
        )

    def _open(self, content: bytes) -> None:
        """Open the file, which holds `content`, to append to it."""
        # Whoever may write into the directory is not to choose what else is written.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags, 0o666)
        self._size, self._lines, self._digest = 0, 0, hashlib.sha256()
        self._account(content)

    def _end(self) -> Mark:
        return Mark(self._size, self._digest.hexdigest())

    def _account(self, written: bytes) -> None:
        self._size += len(written)
        self._lines += written.count(b"\n")
        self._digest.update(written)


def _mend(
    path: Path, mark: Mark | None, precedes: Callable[[Mapping[str, Any]], bool] | None
) -> bytes:
    """Drop a partial last line and what is later than the mark, all or nothing; return the rest."""
    content = _read(path)
    if mark is not None and mark.matches(content):
        kept = content[: mark.size]
    else:
        rows = _complete_lines(path) if content else ()
        lines = [line for line, row in rows if precedes is None or precedes(row)]
        kept = b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines)
        if mark is not None:
            _messages.warning(
                "`%s` is not what it was when the checkpoint was saved: lines were lost, added or "
                "changed; all %d up to there stay",
                path,
                len(lines),
            )
    _replace(path, content, kept)
    return kept


def _read(path: Path) -> bytes:
    """Read a file; what is missing, a device or a link counts as empty."""
    return path.read_bytes() if path.is_file() and not path.is_symlink() else b""


def _replace(path: Path, content: bytes, kept: bytes) -> None:
    if kept != content:
        with replace_atomically(path) as file:
            file.write(kept)


def _whole_lines(content: bytes) -> bytes:
    """Drop a partial last line, and end a whole one that lacks only its newline."""
    before, newline, last = content.rpartition(b"\n")
    try:
        json.loads(last)
    except ValueError:  # nothing is no JSON, either
        return before + newline
    return content + b"\n"


class LoggerGroup:
    """Passes everything on to several loggers; one that fails is left out from then on.

    Training must not stop because a display or an upload does: the failure is reported once, with
    the logger's class name.
    """

    def __init__(self, loggers: Sequence[Logger]):
        self._loggers = list(loggers)

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Log to each."""
        for logger in tuple(self._loggers):
            try:
                logger.log(metrics)
            except Exception as error:
                self._loggers.remove(logger)
                name = type(logger).__name__
                _messages.warning(
                    "%s failed and is switched off (%r); training goes on", name, error
                )
                _close(logger)

    def close(self) -> None:
        """Close each, in order. May be called twice."""
        while self._loggers:
            _close(self._loggers.pop(0))


def _close(logger: Logger) -> None:
    try:
        logger.close()
    except Exception as error:
        _messages.warning("%s did not close cleanly: %r", type(logger).__name__, error)
