"""What need not be computed twice: kernels, compiled models, goals and resets, kept on disk.

Everything here can be deleted at any time. Nothing is unpickled but Numba's own compiled code, and
what is read is checked against the SHA-256 it was written with.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mtrl.provenance import machine

_logger = logging.getLogger("mtrl")

DIGEST = "sha256"

Arrays = dict[str, NDArray[Any]]


@functools.cache
def environment() -> tuple[object, ...]:
    """What the official package's numbers depend on: versions, and how this processor rounds."""
    names = ("metaworld", "mujoco", "numpy", "scipy", "gymnasium")
    return (machine()["cpu"], *(f"{name} {importlib.metadata.version(name)}" for name in names))


def write_arrays(path: Path, arrays: Arrays, description: object = None) -> None:
    """Store arrays and a description that JSON can hold; a disk that refuses is no error.

    Args:
        path: Replaced atomically.
        arrays: By name.
        description: Anything that JSON has a form for.
    """
    text = json.dumps(description)
    content = save(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        {"description": text, DIGEST: _digest(arrays, text)},
    )
    write_file(path, content)


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Replace a file as a whole; a disk that refuses is no error.

    Nothing waits for the disk: what a power cut damages is found out by its digest.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_arrays(path: Path) -> tuple[Arrays, Any] | None:
    """Read what `write_arrays` stored; None if it is missing or damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        text = metadata["description"]
        if metadata[DIGEST] == _digest(arrays, text):
            return arrays, json.loads(text)
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        _logger.debug("%s: %s", path, error)
    _logger.warning("%s is damaged: it is computed again", path)
    return None


def _digest(arrays: Arrays, text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
