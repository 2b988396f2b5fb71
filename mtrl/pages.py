"""Large pages of memory, where the system has them but waits to be asked.

A processor looks up page by page where memory lies, and remembers only so many pages of 4 KiB: less
than an update of larger networks passes through, and a replay is read at random. Linux has pages of
2 MiB as well, and on most systems gives them to who asks.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

from torch import Tensor

LARGE = 2 << 20
"""Bytes of such a page on most processors; larger ones would waste too much."""

_MADV_COLLAPSE = 25  # since Linux 6.1: at once, not when the system finds time

_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
_MAPPINGS = Path("/proc/self/maps")


def prefer_large_pages(tensor: Tensor) -> Tensor:
    """Ask for large pages for a tensor that was not written yet, and return it."""
    if tensor.device.type == "cpu" and _exist():
        _ask(tensor.data_ptr(), tensor.nbytes, mmap.MADV_HUGEPAGE)
    return tensor


def prefer_large_pages_in_heap() -> None:
    """Ask for large pages for what this process's heap is by now, whether it is in use or not.

    That is what was allocated in blocks too small to be mapped on their own, by the first thread.
    Half a gigabyte takes up to a second or so, and a heap with holes takes more memory from then
    on, at most its whole extent.
    """
    try:
        mappings = _MAPPINGS.read_bytes().splitlines() if _exist() else []
    except OSError:
        return
    for line in mappings:
        if line.endswith(b" [heap]"):
            first, end = (int(address, 16) for address in line.split()[0].split(b"-"))
            _ask(first, end - first, mmap.MADV_HUGEPAGE)
            _ask(first, end - first, _MADV_COLLAPSE)


def _exist() -> bool:
    """Tell whether the system has such pages, and gives them to who asks."""
    try:
        size, when = (_PAGES / "hpage_pmd_size").read_text(), (_PAGES / "enabled").read_text()
        return hasattr(mmap, "MADV_HUGEPAGE") and int(size) <= LARGE and "[never]" not in when
    except (OSError, ValueError):
        return False


def _ask(address: int, size: int, advice: int) -> None:
    """Advise the system of whole pages; what it makes of it is its own affair."""
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = address + size - first
    if length >= LARGE:
        advise = ctypes.CDLL(None).madvise
        advise(ctypes.c_void_p(first), ctypes.c_size_t(length), advice)
