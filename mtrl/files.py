"""Writing files so that a crash leaves either the old content or the new, never a mixture."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


def fsync_directory(path: Path) -> None:
    """Make renames inside a directory durable; does nothing where directories cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replace_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of `path` when the block ends without an error.

    The content is on disk before the rename, and the rename before this returns. After an error
    the temporary file is removed and `path` is as it was.

    Raises:
        OSError: the directory is missing or read-only, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def write_json_atomic(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON.

    Raises:
        OSError: see `replace_atomically`.
        TypeError: `obj` holds something JSON has no form for.
        ValueError: `obj` holds NaN or an infinity, which standard JSON has no form for.
    """
    text = json.dumps(obj, indent=2, allow_nan=False) + "\n"
    with replace_atomically(path) as file:
        file.write(text.encode())
