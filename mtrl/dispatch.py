"""Which way an operation takes: a kernel for CPUs, one for GPUs, or torch's operations.

A learner's kernel always has a counterpart of torch's operations, for all devices. Kernels for GPUs
are few, see `mtrl.triton_kernels`.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


class _Way(enum.Enum):
    KERNELS = enum.auto()
    PORTABLE = enum.auto()
    TRACED = enum.auto()
    GPU = enum.auto()


_messages = logging.getLogger("mtrl")

operations: list[Any] = []
"""All that `operator` has made, as torch knows them."""

functions: dict[str, Callable[..., Any]] = {}
"""What those call, by name: to be called straight where nothing but their result is asked for."""

_way = _Way.KERNELS
_library = torch.library.Library("mtrl", "DEF")


def on_cpu(tensor: Tensor) -> bool:
    """Tell whether to go a CPU's way with a tensor: it lies there, and `portable` is off."""
    return tensor.device.type == "cpu" and _way is _Way.KERNELS


def has_operators(tensor: Tensor) -> bool:
    """Tell whether an `operator` is the way to go: as `on_cpu`, and also while traced."""
    return tensor.device.type == "cpu" and _way in (_Way.KERNELS, _Way.TRACED)


def has_triton(tensor: Tensor) -> bool:
    """Tell whether a kernel of `mtrl.triton_kernels` is the way to go: on a GPU, with Triton."""
    if _way is _Way.KERNELS:
        return tensor.is_cuda and _triton_works()
    return _way is _Way.GPU


@functools.cache
def _triton_works() -> bool:
    """Try one kernel: Triton builds what launches it, for which a machine may lack a compiler."""
    try:
        from . import triton_kernels

        summary = triton_kernels.summarise(torch.eye(2, device="cuda")).tolist()
        if summary != [0.0, 0.0, 1.0, 1.0]:
            raise RuntimeError(f"of two orthogonal unit vectors it makes {summary}")
    except Exception as error:  # whatever it is, there is another way
        _messages.warning(
            "Triton cannot be used (%s), so an update launches up to three times as many kernels: "
            "it may lack a C compiler or Python's headers",
            str(error).strip().split("\n")[-1] or type(error).__name__,
        )
        return False
    return True


def portable() -> contextlib.AbstractContextManager[None]:
    """Let any device run torch's operations alone."""
    return _going(_Way.PORTABLE)


def as_on_a_gpu() -> contextlib.AbstractContextManager[None]:
    """Let a CPU run what a GPU does, where ``TRITON_INTERPRET=1`` lets it run Triton's kernels."""
    return _going(_Way.GPU)


def traced() -> contextlib.AbstractContextManager[None]:
    """Let a CPU run what a compiler of updates can see: torch's operations, and `operator`s."""
    return _going(_Way.TRACED)


def operator(schema: str, result: Callable[..., Any] | None = None) -> Callable[[F], F]:
    """Make of a function that calls kernels an operation, which stays one where it is traced.

    Args:
        schema: Its arguments and results, as torch writes them; those that it writes to are marked,
            as in "(Tensor(a!) total, Tensor summand) -> ()".
        result: Allocates results of the right shapes, for a compiler; None if there are none.
    """

    def decorate(function: F) -> F:
        name = function.__name__.strip("_")

        def called(*args: Any) -> Any:
            global _way
            before, _way = _way, _Way.KERNELS
            try:  # not `_going`, which takes longer
                return function(*args)
            finally:
                _way = before

        _library.define(f"{name}{schema}")
        _library.impl(name, called, "CPU")
        torch.library.register_fake(f"mtrl::{name}", result or (lambda *_: None), lib=_library)
        traceable = getattr(torch.ops.mtrl, name).default
        operations.append(traceable)
        functions[name] = called

        @functools.wraps(function)
        def dispatched(*args: Any) -> Any:
            # Straight, where nobody looks: torch's way there costs more than most kernels.
            return (function if _way is _Way.KERNELS else traceable)(*args)

        return cast(F, dispatched)

    return decorate


class _going(contextlib.AbstractContextManager[None]):  # noqa: N801 - called like a function
    """Go a way. As a generator it would take as long, beside what is compiled, as some kernels."""

    def __init__(self, way: _Way) -> None:
        self._way = way

    def __enter__(self) -> None:
        global _way
        self._before, _way = _way, self._way

    def __exit__(self, *_: object) -> None:
        global _way
        _way = self._before
