"""Updates in any number, compiled or not: one by one on a CPU, many with one launch on a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .compiled import UNCOMPILED, Compiled
from .pages import prefer_large_pages_in_heap

_messages = logging.getLogger("mtrl")

_Update = Callable[[], dict[str, Tensor]]

WARM_UP = 3
"""Calls before a GPU's are captured: libraries and optimizers set themselves up in the first."""

_REGISTERS_GENERATORS = torch.__version__ < "2.14"
"""Later ones find out themselves what a graph draws from, and warn of being told each time."""


class Updates:
    """Takes updates: one by one on a CPU, as CUDA graphs of n and of one on a GPU.

    These networks are small: a GPU spends an update waiting for the next of some hundred kernels to
    be launched. A graph launches all of them at once. It repeats the very operations that the same
    function runs on a CPU with `mtrl.dispatch.as_on_a_gpu`, on the same memory; so an update must
    have static shapes, must not ask the device for a number, and must keep its state in place.

    Args:
        update: Takes one update, replay sampling included, and returns detached metrics. What
            changes from call to call, such as how full the replay is, has to come from tensors.
        at_once: n, how many a graph holds. What is left of a number is taken one by one.
        generators: All that `update` draws from; a graph has to know them.
        device: Where `update` works.
        compiled: Compile the update (`mtrl.compiled.Compiled`), on the same terms. Where that
            fails, they are taken as they are, with a warning: a run that is resumed has hours to
            lose.

    Attributes:
        compiled: Whether updates are compiled, as far as is known.
    """

    def __init__(
        self,
        update: _Update,
        *,
        at_once: int,
        generators: Sequence[torch.Generator],
        device: torch.device | str,
        compiled: bool = False,
    ) -> None:
        self._update = update
        self.compiled = compiled
        self._at_once = at_once
        self._generators = generators
        self._device = torch.device(device)
        self._stream: Any = None
        self.forget()

    def __call__(self, count: int) -> dict[str, Tensor]:
        """Take so many updates, at least one.

        Returns:
            The last one's metrics, which the next call overwrites.
        """
        metrics: dict[str, Tensor] = {}
        while count > 0:
            size = self._at_once if count >= self._at_once else 1
            metrics = self._take(size)
            count -= size
        return metrics

    def forget(self) -> None:
        """Capture or compile anew. Necessary once state was loaded: it may live in other memory."""
        self._one: _Update | None = None
        self._warm_ups = 0
        self._graphs: dict[int, tuple[Any, dict[str, Tensor]]] = {}

    def _take(self, size: int) -> dict[str, Tensor]:
        if self._one is None:
            self._one = self._compile() if self.compiled else self._update
        if self._device.type != "cuda":
            return self._take_on_cpu(self._one, size)
        if self._warm_ups < WARM_UP:
            self._warm_ups += 1
            return self._run_on_side_stream(self._one, size)
        if size not in self._graphs:
            self._graphs[size] = self._capture(self._one, size)
        graph, metrics = self._graphs[size]
        graph.replay()
        return metrics

    def _compile(self) -> _Update:
        try:
            return Compiled(self._update, self._device)
        except Exception as fault:  # whatever a full disk or another torch may lead to
            _messages.warning(UNCOMPILED, fault)
            self.compiled = False
            return self._update

    def _take_on_cpu(self, update: _Update, size: int) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        if self._warm_ups == 0:
            self._warm_ups += 1
            metrics = update()
            prefer_large_pages_in_heap()  # which is as large now as updates need it
            size -= 1
        return _repeat(update, size) or metrics

    def _run_on_side_stream(self, update: _Update, size: int) -> dict[str, Tensor]:
        # Capture wants all memory of the first calls, autograd's too, off the default stream. It
        # is one of our own: what cuBLAS works in belongs to a stream, and is given up with any of
        # the graphs that were captured there, others' included (github.com/pytorch/pytorch, issue
        # 193402). So no other learner's may go before ours.
        side, current = self._side(), torch.cuda.current_stream(self._device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            metrics = _repeat(update, size)
        current.wait_stream(side)
        return metrics

    def _side(self) -> Any:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        return self._stream

    def _capture(self, update: _Update, size: int) -> tuple[Any, dict[str, Tensor]]:
        graph = torch.cuda.CUDAGraph()
        if _REGISTERS_GENERATORS:
            for generator in self._generators:
                graph.register_generator_state(generator)
        with torch.cuda.graph(graph, stream=self._side()):
            metrics = _repeat(update, size)
        return graph, metrics


def _repeat(update: _Update, count: int) -> dict[str, Tensor]:
    metrics: dict[str, Tensor] = {}
    for _ in range(count):
        metrics = update()
    return metrics
