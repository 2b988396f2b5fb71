"""The list of a checkpoint's files with their digests, by which damage is found before it is read.

`manifest.json` also carries the SHA-256 of its own content, since nothing else vouches for it.
"""

import hashlib
import io
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import fsync_directory, write_json_atomic
from .provenance import library_versions
from .seal import seal, unseal

FORMAT = "mtrl-checkpoint"
VERSION = 5
MANIFEST = "manifest.json"
# Far above anything real: a damaged or hostile file must not fill the memory.
MAX_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True)
class Label:
    """What a manifest says about its checkpoint.

    Attributes:
        env_steps: environment steps over all tasks when it was saved.
        run: whose it is, so that one that strayed into another run's directory is recognised.
        score: how well its agent was evaluated, if it was.
    """

    env_steps: int
    run: str = ""
    score: float | None = None


class CheckpointError(UserError):
    """A checkpoint cannot be written, or is damaged; the message names the file and the fault."""


def write_manifest(directory: Path, names: Sequence[str], label: Label) -> None:
    """Put the files `names` on disk and seal the directory with its manifest.

    Raises:
        OSError: the file system refuses.
    """
    measured = {}
    for name in names:
        with (directory / name).open("r+b") as stream:
            os.fsync(stream.fileno())
            measured[name] = _measure(stream)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **asdict(label),
        "libraries": library_versions(),
        "files": measured,
    }
    write_json_atomic(directory / MANIFEST, seal(manifest))
    fsync_directory(directory)


def verify_manifest(directory: Path, names: Sequence[str]) -> Label:
    """Check that the files `names`, and no others, are listed in the manifest and undamaged.

    Raises:
        CheckpointError: something is missing, damaged, or of another version of the format.
    """
    if directory.is_symlink():
        raise CheckpointError(f"`{directory}` is a symbolic link: checkpoints are not looked up")
    manifest = _read(directory)
    files = manifest.get("files")
    # Exactly these, so that no name can lead out of the directory.
    if not isinstance(files, dict) or files.keys() != set(names):
        raise CheckpointError(
            f"`{directory / MANIFEST}` must list {' and '.join(names)}, and nothing else"
        )
    label = _label(directory, manifest)
    for name in names:
        _verify_file(directory / name, files[name])
    return label


def read_label(directory: Path) -> Label:
    """Read what a manifest says, without looking at the files it lists.

    Raises:
        CheckpointError: it is missing, damaged, or of another version of the format.
    """
    return _label(directory, _read(directory))


def _read(directory: Path) -> dict[str, Any]:
    file = directory / MANIFEST
    manifest = read_json(file, MAX_MANIFEST_BYTES)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"`{file}` is not the manifest of a checkpoint")
    manifest = unseal(manifest)
    if manifest is None:
        raise CheckpointError(f"`{file}` is damaged: it does not match its own SHA-256")
    version = manifest.get("version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"`{file}` has version {version!r}")
    if version != VERSION:
        remedy = "newer mtrl" if version > VERSION else "older mtrl"
        raise CheckpointError(
            f"`{file}` has format version {version} and this program reads version {VERSION}: "
            f"use the {remedy} that wrote it"
        )
    return manifest


def _label(directory: Path, manifest: dict[str, Any]) -> Label:
    env_steps, run, score = (manifest.get(name) for name in ("env_steps", "run", "score"))
    scored = score is None or type(score) is float
    if type(env_steps) is not int or env_steps < 0 or not isinstance(run, str) or not scored:
        raise CheckpointError(
            f"`{directory / MANIFEST}` has env_steps {env_steps!r}, run {run!r}, score {score!r}"
        )
    return Label(env_steps, run, score)


def read_json(file: Path, limit: int) -> Any:
    """Read a JSON file of at most `limit` bytes.

    Raises:
        CheckpointError: it is missing, too large or not JSON.
    """
    try:
        with _open(file) as stream:
            content = stream.read(limit + 1)  # it might grow while it is read
        if len(content) > limit:
            raise CheckpointError(f"`{file}` has more than the {limit} bytes allowed")
        return json.loads(content)
    except OSError as error:
        raise CheckpointError(f"`{file}` cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # the latter: brackets without end
        raise CheckpointError(f"`{file}` is not JSON: {error}") from error


def _verify_file(file: Path, expected: Any) -> None:
    try:
        with _open(file) as stream:
            # Size first: it is free, and says more than a wrong digest.
            size = os.fstat(stream.fileno()).st_size
            if size != expected["bytes"]:
                raise CheckpointError(f"`{file}` has {size} bytes instead of {expected['bytes']}")
            if _measure(stream) != expected:
                raise CheckpointError(f"`{file}` is damaged: its SHA-256 is not the manifest's")
    except (OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"`{file}` cannot be verified: {error}") from error


def _open(file: Path) -> io.BufferedReader:
    """Open a file of a checkpoint: not a link out of it, nor a device or pipe that never ends."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise CheckpointError(f"`{file}` is missing") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"`{file}` is missing: what is there is no file")
    return os.fdopen(descriptor, "rb")


def _measure(stream: io.BufferedIOBase) -> dict[str, Any]:
    digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": stream.tell(), "sha256": digest}
