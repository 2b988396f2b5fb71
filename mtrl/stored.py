"""What a replay stores, and how transitions are read from it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from . import dispatch
from .compiler import Compiler, prefetch
from .pages import prefer_large_pages
from .types import Batch

FARTHEST = 2**16 - 1
"""Of an observation from the one that is seen next, in slots."""

LONGEST = 2**15 - 1
"""Steps that a transition can span."""

TOTAL, REWARD, LAST = -4, -3, -2
"""Where these are in a record, read as numbers of four bytes; actions come before."""

NEXT, SPAN = -2, -1
"""The same, read as numbers of two bytes."""

_kernel = Compiler("replay", Path(__file__)).kernel


@functools.cache
def record_type(action_size: int) -> np.dtype[Any]:
    """Return what is known of a slot whose observation a transition begins with, in a few bytes.

    - ``actions``: What was done there.
    - ``total``: The discounted sum of the rewards of all steps that it spans,
    - ``reward``: of the first alone.
    - ``last``: The slot that it leads to,
    - ``next``: and how many slots on the first step led.
    - ``span``: How many steps that are; negative if the task ended with the last.
    """
    return np.dtype(
        [
            ("actions", np.float32, (action_size,)),
            ("total", np.float32),
            ("reward", np.float32),
            ("last", np.int32),
            ("next", np.uint16),
            ("span", np.int16),
        ]
    )


@dataclass(frozen=True)
class Stored:
    """A ring of C slots for each of K tasks. Slots lead, tasks follow.

    Sampling reads memory at random, a line at a time: what is read of a slot beside the observation
    lies together.

    Attributes:
        observations: What was seen at a slot.
        records: The bytes of a `record_type`, of the transition that begins there.
        starts: The slots where transitions begin, oldest first: a ring of its own.
    """

    observations: Float[Tensor, "C K O"]
    records: UInt8[Tensor, "C K R"]
    starts: Int[Tensor, "C K"]

    @classmethod
    def allocate(
        cls, capacity: int, num_tasks: int, observation_size: int, action_size: int, device: Any
    ) -> Stored:
        """Make an empty one."""

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            # Before it is filled: a page that is in use stays what it is.
            room = torch.empty(capacity, num_tasks, *shape, dtype=dtype, device=device)
            return prefer_large_pages(room).zero_()

        return cls(
            observations=zeros(observation_size, dtype=torch.float32),
            records=zeros(record_type(action_size).itemsize, dtype=torch.uint8),
            starts=zeros(dtype=torch.int32),
        )

    @staticmethod
    def bytes_a_slot(observation_size: int, action_size: int) -> int:
        """Return how much memory a slot takes."""
        observation = torch.float32.itemsize * observation_size
        return observation + record_type(action_size).itemsize + torch.int32.itemsize

    @property
    def on_host(self) -> NDArray[Any]:
        """The records as a `record_type` ``(C, K)``: on a CPU the same memory, else a copy."""
        A = _action_size(self.records)
        records: NDArray[Any] = self.records.cpu().numpy().view(record_type(A))[..., 0]
        return records

    def store(self, records: NDArray[Any]) -> None:
        """Store what was changed in the records that `on_host` returned."""
        self.records.copy_(torch.from_numpy(records.view(np.uint8)).view(self.records.shape))

    def first_steps(self, slots: int) -> dict[str, Tensor]:
        """Return what is known of single steps, of the first slots: all that must be saved."""
        A, records = _action_size(self.records), self.records[:slots]
        floats, shorts = records.view(torch.float32), records.view(torch.int16)
        place = torch.arange(slots, device=records.device)[:, None]
        return {
            "observations": self.observations[:slots],
            "actions": floats[..., :A],
            "rewards": floats[..., REWARD],
            "terminated": shorts[..., SPAN] == -1,
            "next_slots": (place + (shorts[..., NEXT].int() & FARTHEST)).int() % len(self.starts),
        }

    def read(self, drawn: Int[Tensor, "K B"], window: Int[Tensor, "2 K 1"]) -> Batch:
        """Copy transitions.

        Args:
            drawn: A number of at least zero for each row of the batch, counted from the first of a
                task's transitions on, and from there again after the last.
            window: Where each task's first transition stands in the ring of starts, and how many
                there are.

        Returns:
            A copy, whose parts may be views of one array. The same bits on a CPU, where it is one
            kernel, and elsewhere, where it is some operations.
        """
        O = self.observations.shape[-1]  # noqa: E741
        A = _action_size(self.records)
        if dispatch.has_operators(drawn):
            rows = _read_rows(self.observations, self.records, self.starts, drawn, window)
            observations, actions, following, *numbers = rows.split([O, A, O, 1, 1, 1], dim=-1)
            rewards, terminated, steps = (number.squeeze(-1) for number in numbers)
        else:
            first, size = window
            slots = _get(self.starts, (first + drawn % size) % len(self.starts))
            records = _get(self.records, slots)
            floats, span = records.view(torch.float32), records.view(torch.int16)[..., SPAN]
            observations, actions = _get(self.observations, slots), floats[..., :A]
            rewards = floats[..., TOTAL]
            following = _get(self.observations, records.view(torch.int32)[..., LAST])
            terminated, steps = (span < 0).float(), span.abs().float()
        return Batch(
            observations=observations,
            actions=actions,
            rewards=rewards,
            next_observations=following,
            terminated=terminated,
            steps=steps,
        )


def _action_size(records: Tensor) -> int:
    return (records.shape[-1] - record_type(0).itemsize) // torch.float32.itemsize


def _get(array: Tensor, slots: Int[Tensor, "K B"]) -> Tensor:
    """Read each task's slots: (K, B, ...)."""
    tasks = torch.arange(array.shape[1], device=array.device)[:, None]
    rows = (slots.long() * array.shape[1] + tasks).flatten()
    return array.flatten(0, 1).index_select(0, rows).view(*slots.shape, *array.shape[2:])


def _room_for_rows(
    observations: Tensor, records: Tensor, starts: Tensor, drawn: Tensor, window: Tensor
) -> Tensor:
    del starts, window
    length = 2 * observations.shape[-1] + _action_size(records) + 3
    return observations.new_empty(*drawn.shape, length)


@dispatch.operator(
    "(Tensor observations, Tensor records, Tensor starts, Tensor drawn, Tensor window) -> Tensor",
    _room_for_rows,
)
def _read_rows(
    observations: Tensor,
    records: Tensor,
    starts: Tensor,
    drawn: Int[Tensor, "K B"],
    window: Int[Tensor, "2 K 1"],
    rows: Float[Tensor, "K B _"],
) -> Callable[[], object]:
    """Write observations, actions, next observations, rewards, ends and steps side by side."""
    given = observations, records, starts, drawn, window
    return functools.partial(_read, *(tensor.numpy() for tensor in (*given, rows)))


@_kernel
def _read(
    observations: NDArray[np.float32],
    records: NDArray[np.uint8],
    starts: NDArray[np.int32],
    drawn: NDArray[np.int64],
    window: NDArray[np.int64],
    rows: NDArray[np.float32],
) -> None:
    """Fill the rows of a batch; see `Stored.read`.

    What is read is far from the processor. So all rows of a task take a step before any takes the
    next, and ask for what they will need then: little enough that it still lies nearest by then.
    """
    floats, slots = records.view(np.float32), records.view(np.int32)
    spans = records.view(np.int16)
    K, B = drawn.shape
    O, A = observations.shape[2], floats.shape[2] + TOTAL  # noqa: E741
    places = np.empty((K, B), np.int64)
    for k in range(K):
        first, size = window[0, k, 0], window[1, k, 0]
        for b in range(B):
            places[k, b] = (first + drawn[k, b] % size) % len(starts)
            prefetch(starts, places[k, b], k)
    for k in range(K):
        for b in range(B):
            prefetch(records, starts[places[k, b], k], k)
        for b in range(B):
            start = starts[places[k, b], k]
            prefetch(observations, start, k)
            prefetch(observations, slots[start, k, LAST], k)
        # One number after the other: of so few, a library's copy takes longer, as do views.
        for b in range(B):
            start = starts[places[k, b], k]
            last, span = slots[start, k, LAST], spans[start, k, SPAN]
            for i in range(O):
                rows[k, b, i] = observations[start, k, i]
            for i in range(A):
                rows[k, b, O + i] = floats[start, k, i]
            for i in range(O):
                rows[k, b, O + A + i] = observations[last, k, i]
            rows[k, b, -3] = floats[start, k, TOTAL]
            rows[k, b, -2] = span < 0
            rows[k, b, -1] = abs(span)
