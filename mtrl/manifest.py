"""The list of a checkpoint's files with their digests, by which damage is found before it is read.

`manifest.json` also carries the SHA-256 of its own content, since nothing else vouches for it.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import fsync_directory, write_json_atomic
from .provenance import library_versions

FORMAT = "mtrl-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
# Far above anything real: a damaged or hostile file must not fill the memory.
MAX_MANIFEST_BYTES = 1 << 20


class CheckpointError(UserError):
    """A checkpoint cannot be written, or is damaged; the message names the file and the fault."""


def write_manifest(directory: Path, names: Sequence[str], env_steps: int) -> None:
    """Put the files `names` on disk and seal the directory with its manifest.

    Raises:
        OSError: the file system refuses.
    """
    for name in names:
        with (directory / name).open("r+b") as stream:
            os.fsync(stream.fileno())
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "env_steps": env_steps,
        "libraries": library_versions(),
        "files": {name: _measure(directory / name) for name in names},
    }
    write_json_atomic(directory / MANIFEST, {**manifest, "sha256": _digest(manifest)})
    fsync_directory(directory)


def verify_manifest(directory: Path, names: Sequence[str]) -> int:
    """Check that the files `names`, and no others, are listed in the manifest and undamaged.

    Returns:
        The number of environment steps.

    Raises:
        CheckpointError: something is missing, damaged, or newer than this program.
    """
    file = directory / MANIFEST
    manifest = read_json(file, MAX_MANIFEST_BYTES)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"`{file}` is not the manifest of a checkpoint")
    if manifest.pop("sha256", None) != _digest(manifest):
        raise CheckpointError(f"`{file}` is damaged: it does not match its own SHA-256")
    version, env_steps, files = (manifest.get(key) for key in ("version", "env_steps", "files"))
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(
            f"`{file}` has format version {version} and this program reads up to {VERSION}: "
            "install the newer mtrl that wrote it"
        )
    if version != VERSION or not isinstance(env_steps, int) or env_steps < 0:
        raise CheckpointError(f"`{file}` has version {version!r} and env_steps {env_steps!r}")
    # Exactly these, so that no name can lead out of the directory.
    if not isinstance(files, dict) or files.keys() != set(names):
        raise CheckpointError(f"`{file}` must list {' and '.join(names)}, and nothing else")
    for name in names:
        _verify_file(directory / name, files[name])
    return env_steps


def read_json(file: Path, limit: int) -> Any:
    """Read a JSON file of at most `limit` bytes.

    Raises:
        CheckpointError: it is missing, too large or not JSON.
    """
    try:
        if (size := _size(file)) > limit:
            raise CheckpointError(f"`{file}` has {size} bytes, more than the {limit} allowed")
        return json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"`{file}` cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # the latter: brackets without end
        raise CheckpointError(f"`{file}` is not JSON: {error}") from error


def _verify_file(file: Path, expected: Any) -> None:
    try:
        # Size first: it is free, and says more than a wrong digest.
        size = _size(file)
        if size != expected["bytes"]:
            raise CheckpointError(f"`{file}` has {size} bytes instead of {expected['bytes']}")
        if _measure(file) != expected:
            raise CheckpointError(f"`{file}` is damaged: its SHA-256 is not the manifest's")
    except (OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"`{file}` cannot be verified: {error}") from error


def _size(file: Path) -> int:
    if not file.is_file():  # devices and pipes are not files either: they might never end
        raise CheckpointError(f"`{file}` is missing")
    return file.stat().st_size


def _measure(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"bytes": stream.tell(), "sha256": digest}


def _digest(manifest: dict[str, Any]) -> str:
    # One canonical spelling, whatever the file's white space.
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
