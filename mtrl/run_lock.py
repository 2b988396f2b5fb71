"""At most one process writes into a run directory."""

import contextlib
import datetime
import json
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UserError
from .files import write_json_atomic


class RunLock:
    """An operating system's lock on `directory/lock`, which ends with the process that holds it.

    `directory/lock.json` names that process, for the message that others get; a stale one does no
    harm.

    Raises:
        UserError: another process holds the lock.
        OSError: the directory cannot be written.
    """

    FILES = frozenset({"lock", "lock.json"})

    def __init__(self, directory: Path) -> None:
        self._owner_path = directory / "lock.json"
        self._lock = FileLock(directory / "lock", blocking=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(
                f"`--run-dir` {directory} is in use by {self._owner()}: "
                "stop that, or give another name"
            ) from None
        try:
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
            write_json_atomic(self._owner_path, owner)
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Let others write; may be called twice."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self._owner_path.unlink(missing_ok=True)
            self._lock.release()

    def _owner(self) -> str:
        try:
            owner = json.loads(self._owner_path.read_text())
            return f"pid {owner['pid']} on {owner['host']} since {owner['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
