"""Which of two ways an operation takes: a compiled kernel, or torch's operations.

A learner's kernel always has a counterpart of torch's operations, for devices other than a CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor

_portable = False


def on_cpu(tensor: Tensor) -> bool:
    """Tell whether to go a CPU's way with a tensor: it lies there, and `portable` is off."""
    return tensor.device.type == "cpu" and not _portable


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Let a CPU run what other devices run, torch's operations alone."""
    global _portable
    before, _portable = _portable, True
    try:
        yield
    finally:
        _portable = before
