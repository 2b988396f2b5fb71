"""JSON records that carry the SHA-256 of their own content, where nothing else vouches for them."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with its digest, as "sha256"."""
    return {**record, "sha256": _digest(record)}


def unseal(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record without its digest; None if it has none, or another."""
    content = {name: value for name, value in record.items() if name != "sha256"}
    return content if record.get("sha256") == _digest(content) else None


def _digest(record: Mapping[str, Any]) -> str:
    # One canonical spelling, whatever the file's white space.
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
