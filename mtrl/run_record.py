"""What config.json holds of a run: its configuration, what that ran on, and what it was before."""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import UserError
from .provenance import library_versions, machine
from .seal import seal, unseal

MAX_CONFIG_BYTES = 16 << 20
_ABSENT = object()


def read_record(file: Path) -> dict[str, Any]:
    """Read what `make_record` made, and JSON holds.

    Raises:
        UserError: it is damaged, or was changed.
    """
    try:
        if (size := file.stat().st_size) > MAX_CONFIG_BYTES:
            raise ValueError(f"{size} bytes")
        record = json.loads(file.read_bytes())
        if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
            raise ValueError('no "config"')
        if not isinstance(record.get("id"), str):
            raise ValueError('"id" is not a string')
        if not _is_history(record.get("history")):
            raise ValueError('"history" is no list of earlier records')
        record = unseal(record)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is damaged or unreadable ({error}): restore it, or start another run"
        ) from error
    if record is None:
        raise UserError(
            f"{file} was changed or is damaged (it does not match its own SHA-256): put it back as "
            "it was; what a run may go on with is given as options beside `--resume`"
        )
    return record


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(old, dict) and isinstance(old.get("config"), dict) for old in value
    )


def make_record(config: Mapping[str, Any], history: list[Any], run_id: str) -> dict[str, Any]:
    """Say what a run with an id is asked to do, and was before, oldest first."""
    return seal(
        {
            "id": run_id,
            "config": config,
            "versions": library_versions(),
            "machine": machine(),
            "started": local_time().isoformat(timespec="seconds"),
            "history": history,
        }
    )


def as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as it will be read back, so that a tuple equals the stored list."""
    normalised: dict[str, Any] = json.loads(json.dumps(config))
    return normalised


def find_changes(
    path: Path, before: dict[str, Any], now: dict[str, Any], may_differ: frozenset[str]
) -> list[str]:
    """Compare the settings of the run in `path` with those asked for now, by dotted keys.

    Returns:
        The changes, in words.

    Raises:
        UserError: one is not among those that may be.
    """
    refused: list[str] = []
    allowed: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, _ABSENT), now.get(key, _ABSENT)
        if old != new:
            option = key.rpartition(".")[2].replace("_", "-")  # options have no prefixes
            change = f"`--{option}`: {_show(old)} -> {_show(new)}"
            (allowed if key in may_differ else refused).append(change)
    if refused:
        raise UserError(
            f"`--resume`: the run in {path} has other settings (stored -> given): "
            + ", ".join(refused)
            + ". Give the stored ones, or start another run in a new `--run-dir`"
        )
    return allowed


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration's values by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value)


def local_time() -> datetime.datetime:
    """What the clock shows here."""
    return datetime.datetime.now().astimezone()
