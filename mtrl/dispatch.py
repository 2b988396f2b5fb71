"""Which way an operation takes: a kernel for CPUs, one for GPUs, or torch's operations.

A learner's kernel always has a counterpart of torch's operations, for all devices. Kernels for GPUs
are few, see `mtrl.triton_kernels`.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor


class _Way(enum.Enum):
    KERNELS = enum.auto()
    PORTABLE = enum.auto()
    TRACED = enum.auto()
    GPU = enum.auto()


_messages = logging.getLogger("mtrl")

R = TypeVar("R")
"""What an operation returns."""

operators: dict[str, Operator[Any]] = {}
"""All that `operator` has made, by the names by which torch knows them."""

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
    if _way in (_Way.KERNELS, _Way.TRACED):
        return tensor.is_cuda and triton_works()
    return _way is _Way.GPU


@functools.cache
def triton_works() -> bool:
    """Try one kernel: Triton builds what launches it, for which a machine may lack a compiler.

    Warns, once, if there is no way.
    """
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
    """Let run what a compiler of updates can see: torch's operations, and `operator`s."""
    return _going(_way if _way is _Way.GPU else _Way.TRACED)


def operator(
    schema: str, room: Callable[..., R] | None = None, tags: Sequence[torch.Tag] = ()
) -> Callable[[Callable[..., Callable[[], object]]], Operator[R]]:
    """Make of a function an operation, which stays one where it is traced.

    The function prepares the operation: it is given the arguments, and what was allocated for the
    results, and returns what does the work when it is called. On the same memory that can be called
    again and again, for other numbers, and nothing has to be looked at twice.

    Args:
        schema: Its arguments and results, as torch writes them; those that it writes to are marked,
            as in "(Tensor(a!) total, Tensor summand) -> ()".
        room: Allocates the results, from the arguments; None if there are none.
        tags: What a compiler is to know of it.
    """
    return functools.partial(Operator[R], schema, room, tags)


class Operator(Generic[R]):
    """An operation of ours, to be called with its arguments; see `operator`.

    Attributes:
        known_as: What torch knows it as.
        room: Allocates its results.
    """

    def __init__(
        self,
        schema: str,
        room: Callable[..., R] | None,
        tags: Sequence[torch.Tag],
        prepare: Callable[..., Callable[[], object]],
    ) -> None:
        functools.update_wrapper(self, prepare)
        self._prepare = prepare
        self.room = room
        name = prepare.__name__.strip("_")
        _library.define(f"{name}{schema}", tags=tags)
        for device in ("CPU", "CUDA"):
            _library.impl(name, self.straight, device)
        torch.library.register_fake(f"mtrl::{name}", room or (lambda *_: None), lib=_library)
        self.known_as = getattr(torch.ops.mtrl, name).default
        operators[name] = self

    def __call__(self, *args: Any) -> R:
        """Return the results."""
        # Straight, where nobody looks: torch's way there costs more than most kernels.
        return cast(R, (self._do if _way is _Way.KERNELS else self.known_as)(*args))

    def straight(self, *args: Any) -> R:
        """Return the results, whether it is traced or not."""
        global _way
        before, _way = _way, _Way.KERNELS
        try:  # not `_going`, which takes longer
            return self._do(*args)
        finally:
            _way = before

    def prepared(self, args: Sequence[Any], results: Any) -> Callable[[], object]:
        """Return what does the work on these arguments, for results that `room` has allocated."""
        return self._prepare(*args) if self.room is None else self._prepare(*args, results)

    def _do(self, *args: Any) -> R:
        results = None if self.room is None else self.room(*args)
        self.prepared(args, results)()
        return cast(R, results)


class InTurn(list[Callable[[], object]]):
    """Calls that are made one after the other when this is called."""

    def __call__(self) -> None:
        """Make them."""
        for call in self:
            call()

    def contiguous(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor if it lies in one piece, or else one that does, copied to in its turn.

        Args:
            tensor: That.
            dtype: Which it must have, if it matters.
        """
        dtype = dtype or tensor.dtype
        if tensor.is_contiguous() and tensor.dtype == dtype:
            return tensor
        copy = torch.empty(tensor.shape, dtype=dtype, device=tensor.device)
        self.append(functools.partial(copy.copy_, tensor))
        return copy


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
