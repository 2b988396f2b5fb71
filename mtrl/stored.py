"""What a replay stores, and how transitions are read from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from . import dispatch
from .compiler import Compiler, prefetch
from .types import Batch

RECORD = 12
"""Bytes: a reward, where a step led and two marks, filled up to a multiple of four."""

_kernel = Compiler("replay", Path(__file__)).kernel


@dataclass(frozen=True)
class Stored:
    """A ring of C slots for each of K tasks. Slots lead, tasks follow.

    Attributes:
        observations: What was seen at a slot.
        actions: What was done there.
        records: What is read of each step on the way, which lies together, as memory is read a line
            at a time: see the properties.
        starts: Where transitions begin, oldest first: numbers of observations, a ring of its own.
    """

    observations: Float[Tensor, "C K O"]
    actions: Float[Tensor, "C K A"]
    records: UInt8[Tensor, "C K R"]
    starts: Int[Tensor, "C K"]

    @classmethod
    def allocate(
        cls, capacity: int, num_tasks: int, observation_size: int, action_size: int, device: Any
    ) -> Stored:
        """Make an empty one."""

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(capacity, num_tasks, *shape, dtype=dtype, device=device)

        return cls(
            observations=zeros(observation_size),
            actions=zeros(action_size),
            records=zeros(RECORD, dtype=torch.uint8),
            starts=zeros(dtype=torch.int64),
        )

    @property
    def rewards(self) -> Float[Tensor, "C K"]:
        """What a step earned."""
        return self.records.view(torch.float32)[..., 0]

    @property
    def next_slots(self) -> Int[Tensor, "C K"]:
        """Where what was seen next is."""
        return self.records.view(torch.int32)[..., 1]

    @property
    def terminated(self) -> Bool[Tensor, "C K"]:
        """Whether the task ended with a step."""
        return self.records.view(torch.bool)[..., 8]

    @property
    def begins(self) -> Bool[Tensor, "C K"]:
        """Whether a transition begins at a slot."""
        return self.records.view(torch.bool)[..., 9]

    def read(self, places: Int[Tensor, "K B"], discounts: list[float]) -> Batch:
        """Go some steps on from transitions, or as far as their episodes are stored.

        Args:
            places: In the ring of transitions, one for each row of the batch.
            discounts: Of the first step's reward, the second's, ...: as many as steps are taken.

        Returns:
            A copy, whose parts may be views of one array. The same bits on a CPU, where it is one
            kernel, and elsewhere, where each step is some operations.
        """
        if not dispatch.has_operators(places):
            return self._read_step_by_step(places, discounts)
        arrays = self.observations, self.actions, self.records, self.starts
        rows = _read_rows(*arrays, places, discounts)
        O, A = self.observations.shape[-1], self.actions.shape[-1]  # noqa: E741
        observations, actions, following, *numbers = rows.split([O, A, O, 1, 1, 1], dim=-1)
        rewards, terminated, steps = (number.squeeze(-1) for number in numbers)
        return Batch(
            observations=observations,
            actions=actions,
            rewards=rewards,
            next_observations=following,
            terminated=terminated,
            steps=steps,
        )

    def _read_step_by_step(self, places: Tensor, discounts: list[float]) -> Batch:
        slots = self._get("starts", places) % len(self.starts)
        observations, actions = self._get("observations", slots), self._get("actions", slots)
        rewards, steps = (torch.zeros(slots.shape, device=slots.device) for _ in range(2))
        goes_on = torch.ones(slots.shape, dtype=torch.bool, device=slots.device)
        for step, discount in enumerate(discounts):
            rewards += discount * self._get("rewards", slots) * goes_on
            steps += goes_on
            # Where it ended before, `slots` stays at the last transition.
            following = self._get("next_slots", slots).long()
            if step < len(discounts) - 1:
                ended = self._get("terminated", slots)
                goes_on = goes_on & ~ended & self._get("begins", following)
                slots = torch.where(goes_on, following, slots)
        return Batch(
            observations=observations,
            actions=actions,
            rewards=rewards,
            next_observations=self._get("observations", following),
            terminated=self._get("terminated", slots).float(),
            steps=steps,
        )

    def _get(self, name: str, slots: Tensor) -> Tensor:
        """Read each task's slots (K, B): (K, B, ...)."""
        array = getattr(self, name)
        tasks = torch.arange(array.shape[1], device=array.device)[:, None]
        rows = (slots * array.shape[1] + tasks).flatten()
        found: Tensor = array.flatten(0, 1).index_select(0, rows)
        return found.view(*slots.shape, *array.shape[2:])


def _room_for_rows(
    observations: Tensor, actions: Tensor, records: Tensor, starts: Tensor, places: Tensor, _: Any
) -> Tensor:
    del records, starts
    length = 2 * observations.shape[-1] + actions.shape[-1] + 3
    return observations.new_empty(*places.shape, length)


@dispatch.operator(
    "(Tensor observations, Tensor actions, Tensor records, Tensor starts, Tensor places, "
    "float[] discounts) -> Tensor",
    _room_for_rows,
)
def _read_rows(
    observations: Tensor,
    actions: Tensor,
    records: Tensor,
    starts: Tensor,
    places: Int[Tensor, "K B"],
    discounts: list[float],
) -> Float[Tensor, "K B _"]:
    """Return observations, actions, next observations, rewards, ends and steps side by side."""
    stored = observations, actions, records, starts
    rows = _room_for_rows(*stored, places, discounts)
    arrays = [array.numpy() for array in (*stored, places, rows)]
    _read(*arrays, np.array(discounts, np.float32))  # type: ignore[call-arg]
    return rows


@_kernel
def _read(
    observations: NDArray[np.float32],
    actions: NDArray[np.float32],
    records: NDArray[np.uint8],
    starts: NDArray[np.int64],
    places: NDArray[np.int64],
    rows: NDArray[np.float32],
    discounts: NDArray[np.float32],
) -> None:
    """Fill the rows of a batch; see `Stored.read`.

    What is read is far from the processor. So all rows take a step before any takes the next, and
    each asks for what it will need then.
    """
    rewards, next_slots = records.view(np.float32)[..., 0], records.view(np.int32)[..., 1]
    terminated, begins = records[..., 8], records[..., 9]
    K, B = places.shape
    O, A = observations.shape[2], actions.shape[2]  # noqa: E741
    earned, ended, steps = rows[..., -3], rows[..., -2], rows[..., -1]
    slots, goes_on = np.empty((K, B), np.int64), np.empty((K, B), np.bool_)
    for k in range(K):
        for b in range(B):
            prefetch(starts, places[k, b], k)
    for k in range(K):
        for b in range(B):
            slots[k, b] = starts[places[k, b], k] % len(starts)
            goes_on[k, b] = True
            earned[k, b] = steps[k, b] = 0
            prefetch(records, slots[k, b], k)
            prefetch(actions, slots[k, b], k)
            prefetch(observations, slots[k, b], k)
    for step in range(len(discounts)):
        for k in range(K):
            for b in range(B):
                if not goes_on[k, b]:
                    continue
                slot = slots[k, b]
                if step == 0:
                    _copy(observations[slot, k], rows[k, b], 0)
                    _copy(actions[slot, k], rows[k, b], O)
                elif not begins[slot, k]:
                    goes_on[k, b] = False
                    continue
                earned[k, b] += discounts[step] * rewards[slot, k]
                steps[k, b] += 1
                ended[k, b] = terminated[slot, k]
                slots[k, b] = next_slots[slot, k]
                goes_on[k, b] = not terminated[slot, k]
                if step + 1 < len(discounts):
                    prefetch(records, slots[k, b], k)
    for k in range(K):
        for b in range(B):
            prefetch(observations, slots[k, b], k)
    for k in range(K):
        for b in range(B):
            _copy(observations[slots[k, b], k], rows[k, b], O + A)


@_kernel
def _copy(given: NDArray[np.float32], result: NDArray[np.float32], start: int) -> None:
    """Write numbers one by one: of so few, a library's copy takes longer."""
    for i in range(len(given)):
        result[start + i] = given[i]
