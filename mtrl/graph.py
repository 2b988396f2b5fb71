"""Several updates by one call, and on a GPU by one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before a GPU's are captured: libraries and optimizers set themselves up in the first."""


class Updates:
    """Takes n updates a call: one by one on a CPU, as one CUDA graph on a GPU.

    These networks are small: a GPU spends an update waiting for the next of some hundred kernels to
    be launched. A graph launches all of them at once. It repeats the very operations that the same
    function runs on a CPU, on the same memory; so an update must have static shapes, must not ask
    the device for a number, and must keep its state in place.

    Args:
        update: Takes one update, replay sampling included, and returns detached metrics. What
            changes from call to call, such as how full the replay is, has to come from tensors.
        count: n.
        generators: All that `update` draws from; a graph has to know them.
        device: Where `update` works.
    """

    def __init__(
        self,
        update: Callable[[], dict[str, Tensor]],
        count: int,
        *,
        generators: Sequence[torch.Generator],
        device: torch.device | str,
    ) -> None:
        self._update = update
        self._count = count
        self._generators = generators
        self._device = torch.device(device)
        self.forget()

    def __call__(self) -> dict[str, Tensor]:
        """Take n updates; return the last one's metrics, which the next call overwrites."""
        if self._device.type != "cuda":
            return self._run()
        if self._calls < WARM_UP:
            self._calls += 1
            return self._run_on_side_stream()
        if self._graph is None:
            self._capture()
        self._graph.replay()
        return self._metrics

    def forget(self) -> None:
        """Capture anew. Necessary once state was loaded: it may live in other memory."""
        self._calls = 0
        self._graph: Any = None
        self._metrics: dict[str, Tensor] = {}

    def _run(self) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        for _ in range(self._count):
            metrics = self._update()
        return metrics

    def _run_on_side_stream(self) -> dict[str, Tensor]:
        # Capture wants all memory of the first calls, autograd's too, off the default stream.
        side, current = torch.cuda.Stream(self._device), torch.cuda.current_stream(self._device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            metrics = self._run()
        current.wait_stream(side)
        return metrics

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            self._metrics = self._run()
        self._graph = graph
