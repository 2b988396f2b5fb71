"""The calls that a compiled function makes, to be repeated on the same memory.

What torch's compiler makes of an update is a function in Python, which allocates memory, looks at
it in one way or another, and calls some fifty loops and products, each time anew. All of that is
the same in every call: what is left of it here are the loops and products.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import dispatch
from .pages import prefer_large_pages

ALIGNMENT = 64
"""Bytes that an allocation begins at a multiple of, as torch's do."""

NOWHERE = 0
"""Where tensors without numbers lie."""

CHANGE_NOTHING = {
    *("call", "reinterpret_tensor", "assert_size_stride", "assert_alignment"),
    *("maybe_profile", "run_intermediate_hooks"),
}
"""What the compiler's modules call without any effect on memory. A call by any other name is noted,
so that one that is new is repeated, too."""

_messages = logging.getLogger("mtrl")


class Recording:
    """A function made by torch's compiler, of which later calls repeat what the first has done.

    What a CUDA graph is for a GPU. Everything that is allocated on the way lies in one piece of
    memory, in which what is used one after the other shares a place. In the first call nothing of
    it is released yet.

    Where the function does what cannot be recorded, it is called itself.

    Args:
        function: Made by `torch._inductor.compile`. Which calls it makes must not depend on the
            numbers in its arguments.
        modules: What the compiler has written for it.

    Attributes:
        is_complete: Whether there was a first call that can be repeated.
    """

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], modules: Sequence[ModuleType]
    ) -> None:
        self._function, self._modules = function, modules
        self._is_new, self.is_complete = True, False
        self._calls: list[Callable[[], object]] = []
        self._results: Sequence[Tensor] = ()

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Call it, or do again what it did.

        Args:
            inputs: Its arguments, the same memory each time.

        Returns:
            Its results, which the next call overwrites.
        """
        if self.is_complete:
            for call in self._calls:
                call()
            return self._results
        if not self._is_new:
            return self._function(*inputs)
        watch = _Watch(self._modules)
        with watch:
            results = tuple(self._function(*inputs))
        self._is_new, self.is_complete = False, watch.has_seen_all(inputs, results)
        if self.is_complete:
            memory = watch.arranged(results)
            self._results = tuple(memory.moved(tensor) for tensor in results)
            self._steps = [step.moved(memory) for step in watch.steps]  # calls may hold addresses
            self._calls = [step.prepared() for step in self._steps]
        else:
            _messages.info("what torch's compiler made cannot be repeated, only called")
        return results


@dataclass
class _Step:
    """A call that was made.

    Attributes:
        function: What was called,
        args: with what,
        kwargs: by name too.
        results: What came of it,
        made: and what was allocated for that.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: Any
    made: list[Tensor]

    @property
    def tensors(self) -> Iterator[Tensor]:
        """All that it read or wrote."""
        return _tensors((self.args, self.kwargs, self.results))

    def moved(self, memory: _Memory) -> _Step:
        """Return the same call on the memory where everything has its place."""
        parts = self.args, self.kwargs, self.results, self.made
        return _Step(self.function, *memory.moved(parts))

    def prepared(self) -> Callable[[], object]:
        """Return what makes the call."""
        if isinstance(self.function, dispatch.Operator):
            return self.function.prepared(self.args, self.results)
        call = functools.partial(self.function, *self.args, **self.kwargs)
        return functools.partial(_call_and_copy, call, self.made) if self.made else call


def _call_and_copy(call: Callable[[], Any], places: Sequence[Tensor]) -> None:
    for place, made in zip(places, _tensors(call()), strict=True):
        place.copy_(made)


class _Watch(TorchDispatchMode):
    """While it is entered, notes what a compiled function allocates and calls.

    Args:
        modules: Where the function is.

    Attributes:
        steps: All calls, in order.
    """

    def __init__(self, modules: Sequence[ModuleType]) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self._modules = modules
        self._allocated: dict[int, tuple[Tensor, int]] = {}  # by address: and before which step
        self._is_inside = self._has_missed_something = False

    def __enter__(self) -> _Watch:
        with contextlib.ExitStack() as undo:
            for module in self._modules:
                undo.enter_context(self._instead_of_what_it_calls(module))
            super().__enter__()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._undo.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """See what is called in ways that nothing here knows of."""
        if not (self._is_inside or func.is_view):
            self._has_missed_something = True
        return func(*args, **kwargs or {})

    @contextlib.contextmanager
    def _instead_of_what_it_calls(self, module: ModuleType) -> Iterator[None]:
        """Let a module that the compiler has written call us by the names that it knows."""
        names, before = vars(module), dict(vars(module))
        ours = {name: _Named(default=self._called(o)) for name, o in dispatch.operators.items()}
        theirs = _Attributes(torch.ops.aten, lambda packet: _Attributes(packet, self._called))
        functions = {n: f for n, f in before.items() if callable(f) and n not in CHANGE_NOTHING}
        names |= {name: self._called(function) for name, function in functions.items()}
        names["torch"] = _Named(torch, ops=_Named(torch.ops, mtrl=_Named(**ours), aten=theirs))
        names["aten"] = theirs
        names["extern_kernels"] = _Attributes(before.get("extern_kernels"), self._called)
        names["empty_strided_cpu"] = self._allocate
        try:
            yield
        finally:
            for name in names.keys() - before.keys():
                del names[name]
            names.update(before)

    def _allocate(self, size: Any, stride: Any, dtype: torch.dtype) -> Tensor:
        self._is_inside = True
        tensor = torch.empty_strided(size, stride, dtype=dtype)
        self._is_inside = False
        self._note_memory(tensor, len(self.steps))
        return tensor

    def _note_memory(self, tensor: Tensor, before: int) -> None:
        if _storage(tensor) != NOWHERE:
            self._allocated.setdefault(_storage(tensor), (tensor, before))

    def _called(self, function: Any) -> Callable[..., Any]:
        """Return a function that does the same and notes it."""

        def noted(*args: Any, **kwargs: Any) -> Any:
            is_ours = isinstance(function, dispatch.Operator)
            self._is_inside = True
            results = (function.straight if is_ours else function)(*args, **kwargs)
            self._is_inside = False
            known = {_storage(tensor) for tensor in _tensors((args, kwargs))}
            made = [tensor for tensor in _tensors(results) if _storage(tensor) not in known]
            if not is_ours and 0 < len(made) < len(list(_tensors(results))):
                self._has_missed_something = True  # a view would be copied over what it is one of
            for tensor in made:
                self._note_memory(tensor, len(self.steps))
            self.steps.append(_Step(function, args, kwargs, results, made))
            return results

        return noted

    def has_seen_all(self, inputs: Sequence[Tensor], results: Sequence[Tensor]) -> bool:
        """Tell whether the steps are all that was done, and led from these to those."""
        known = {NOWHERE, *self._allocated, *map(_storage, inputs)}
        met = {_storage(tensor) for step in self.steps for tensor in step.tensors}
        met |= set(map(_storage, results))
        return len(self.steps) > 0 and met <= known and not self._has_missed_something

    def arranged(self, results: Sequence[Tensor]) -> _Memory:
        """Give everything a place in one piece of memory, results one that nothing else has."""
        last = {storage: before for storage, (_, before) in self._allocated.items()}
        for number, step in enumerate(self.steps):
            last |= {_storage(tensor): number for tensor in step.tensors}
        last |= {_storage(tensor): len(self.steps) for tensor in results}
        lasting = {
            storage: (tensor.untyped_storage().nbytes(), before, last[storage])
            for storage, (tensor, before) in self._allocated.items()
        }
        return _Memory(*arrange(lasting))


def arrange(lasting: dict[int, tuple[int, int, int]]) -> tuple[dict[int, int], int]:
    """Find places for what is not all needed at the same time.

    Args:
        lasting: By name, in the order in which it is needed: how many bytes, and the numbers of the
            first and the last step that need it.

    Returns:
        By name, where each begins, and how many bytes they are altogether.
    """
    places: dict[int, int] = {}
    in_use: list[tuple[int, int, int]] = []  # beginning, end and last step, by beginning
    total = 0
    for name, (size, first, last) in lasting.items():
        in_use = [used for used in in_use if used[2] >= first]
        size = -(-size // ALIGNMENT) * ALIGNMENT
        free, beginning = list[tuple[int, int]](), 0
        for start, end, _ in in_use:
            if start - beginning >= size:
                free.append((start - beginning, beginning))
            beginning = end
        places[name] = min(free)[1] if free else beginning
        in_use = sorted([*in_use, (places[name], places[name] + size, last)])
        total = max(total, places[name] + size)
    return places, total


class _Memory:
    """One piece of memory, where what lay elsewhere has its place.

    Args:
        places: Where in it each begins, by the address where it began.
        size: In bytes.
    """

    def __init__(self, places: dict[int, int], size: int) -> None:
        self._places = places
        # A multiple of torch's own alignment stays one, as memory of its own begins at one.
        self._all = prefer_large_pages(torch.empty(size, dtype=torch.uint8)).zero_()

    def moved(self, value: Any) -> Any:
        """Return the same value with tensors of the memory here in the place of others."""
        if isinstance(value, Tensor):
            before = _storage(value)
            if before not in self._places:
                return value
            offset = self._places[before] // value.itemsize + value.storage_offset()
            where = self._all.untyped_storage(), offset, value.shape, value.stride()
            return torch.empty(0, dtype=value.dtype).set_(*where)
        if isinstance(value, (list, tuple)):
            return type(value)(self.moved(each) for each in value)
        if isinstance(value, dict):
            return {name: self.moved(each) for name, each in value.items()}
        return value


class _Named:
    """An object with some attributes of its own, others being another's."""

    def __init__(self, other: Any = None, **own: Any) -> None:
        self._other = other
        vars(self).update(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._other, name)


class _Attributes:
    """Another object's attributes, each after something was done to it."""

    def __init__(self, other: Any, change: Callable[[Any], Any]) -> None:
        self._other, self._change = other, change

    def __getattr__(self, name: str) -> Any:
        return self._change(getattr(self._other, name))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in it."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _storage(tensor: Tensor) -> int:
    """Return where the memory begins that a tensor lies in."""
    return tensor.untyped_storage().data_ptr()
