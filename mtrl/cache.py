"""Folders for what need not be computed twice. Each can be deleted at any time."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import time
from pathlib import Path

UNUSED_DAYS = 30

_messages = logging.getLogger("mtrl")


def cache_folder(kind: str, *ingredients: object) -> Path | None:
    """Make the folder for what follows from `ingredients`, or None where none can be written.

    Folders of the same kind that nothing has used for `UNUSED_DAYS` are removed when a new one
    is made.

    Args:
        kind: Starts the folder's name.
        ingredients: All that its content depends on.
    """
    digest = hashlib.sha256(repr(ingredients).encode()).hexdigest()[:16]
    try:
        root = _root()
        path = root / f"{kind}-{digest}"
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            _remove_unused(root, kind)
        os.utime(path)
    except (OSError, RuntimeError):  # the latter where there is no home
        return None
    return path if os.access(path, os.W_OK) else None


@functools.cache
def tell_of_compiling() -> None:
    """Say that something is compiled which takes a while, the first time in a process."""
    takes = "half a minute or less, and one to two seconds a task"
    try:
        root = _root()
        root.mkdir(parents=True, exist_ok=True)
        fault = None if os.access(root, os.W_OK) else f"{root} cannot be written"
    except (OSError, RuntimeError) as error:  # the latter where there is no home
        fault = str(error)
    if fault is None:
        _messages.info("compiling what is not in %s yet: %s", root, takes)
    else:
        _messages.warning(
            "compiling anew at each start (%s), as nothing can be kept (%s): let `XDG_CACHE_HOME` "
            "be a folder that can be written",
            takes,
            fault,
        )


def _root() -> Path:
    """Return the folder of all others; raises a RuntimeError where there is no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtrl"


def _remove_unused(root: Path, kind: str) -> None:
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for folder in root.glob(f"{kind}-*"):
        # Another user's folder, or one that another process is removing, is left to them.
        with contextlib.suppress(OSError):
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)
