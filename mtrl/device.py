"""Where to compute, and in which precision."""

from __future__ import annotations

import ctypes
import functools
from typing import Literal

import torch

from .cores import available_cores
from .errors import UserError

Precision = Literal["fp32", "tf32", "bf16"]
PrecisionName = Literal["auto", "fp32", "tf32", "bf16"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def resolve_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Return the device of that name; "auto" is a GPU if there is one.

    Raises:
        UserError: If a GPU is asked for where torch sees none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError(
            "`--device` is cuda, but torch sees no GPU: use --device cpu (or auto), or install a "
            "build of torch for your GPU."
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def resolve_precision(name: PrecisionName, device: torch.device) -> Precision:
    """Return the precision of that name, as far as the device has it.

    "auto" is bf16 where the hardware multiplies it: elsewhere it is correct, but slower than fp32.
    "tf32" is fp32 where there is no TF32, which differs by being more exact.
    """
    if name == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    if name == "tf32" and not (device.type == "cuda" and _is_ampere_or_later(device)):
        return "fp32"
    return name


def use_precision(precision: Precision) -> torch.dtype:
    """Let torch round float32 products accordingly; return the type that products take.

    tf32 reads float32 numbers and multiplies their leading 11 bits. In bf16 sums are float32's,
    also where a GPU adds up parts of one apart.
    """
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    return torch.bfloat16 if precision == "bf16" else torch.float32


def set_threads(count: int) -> int:
    """Give torch so many CPU threads, or one per core for 0; return how many those are."""
    threads = count or available_cores()
    torch.set_num_threads(threads)
    return threads


def share_cores(
    learning: int, simulating: int, *, overlap: bool, device: torch.device | None = None
) -> tuple[int, int]:
    """Return how many threads learn and how many simulate.

    Args:
        learning: Threads asked for; 0 for what is left, at least one.
        simulating: Likewise; 0 for half of the cores if both work at once. If they take turns, as
            many as learn.
        overlap: Whether both work at once.
        device: What learns. Beside a GPU one thread is enough, and the others may simulate.
    """
    cores = available_cores()
    if device is not None and device.type != "cpu":
        return learning or 1, simulating or max(1, cores - overlap)
    if not overlap:
        learning = learning or cores
        return learning, simulating or learning
    simulating = simulating or max(1, cores // 2)
    return learning or max(1, cores - simulating), simulating


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed instead of handing it back to the system; tell if it will.

    An update allocates and frees the same large tensors over and over. By default many of them are
    mapped and unmapped each time, and the system clears their pages each time. Blocks above 32 MiB,
    the most glibc allows, are still mapped on their own: a checkpoint's memory goes back.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 32 << 20) and mallopt(_M_TRIM_THRESHOLD, 512 << 20))


@functools.cache
def has_bf16(device: torch.device) -> bool:
    """Tell whether the hardware multiplies bf16."""
    if device.type == "cuda":
        return _is_ampere_or_later(device)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _is_ampere_or_later(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)
