"""What a replay stores, and how transitions are read from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from . import dispatch
from .compiler import Compiler
from .types import Batch

_kernel = Compiler("replay", Path(__file__)).kernel


@dataclass(frozen=True)
class Stored:
    """A ring of C slots for each of K tasks. Slots lead, tasks follow.

    Attributes:
        observations: What was seen at a slot.
        actions: What was done there.
        rewards: What that earned.
        terminated: Whether the task ended with it.
        next_slots: Where what was seen next is.
        begins: Whether a transition begins at a slot.
        starts: Where transitions begin, oldest first: numbers of observations, a ring of its own.
    """

    observations: Float[Tensor, "C K O"]
    actions: Float[Tensor, "C K A"]
    rewards: Float[Tensor, "C K"]
    terminated: Bool[Tensor, "C K"]
    next_slots: Int[Tensor, "C K"]
    begins: Bool[Tensor, "C K"]
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
            rewards=zeros(),
            terminated=zeros(dtype=torch.bool),
            next_slots=zeros(dtype=torch.int32),
            begins=zeros(dtype=torch.bool),
            starts=zeros(dtype=torch.int64),
        )

    def read(self, places: Int[Tensor, "K B"], discounts: list[float]) -> Batch:
        """Go some steps on from transitions, or as far as their episodes are stored.

        Args:
            places: In the ring of transitions, one for each row of the batch.
            discounts: Of the first step's reward, the second's, ...: as many as steps are taken.

        Returns:
            A copy. The same bits on a CPU, where one kernel reads a row after the other, and
            elsewhere, where each step is some operations on all rows.
        """
        if not dispatch.has_operators(places):
            return self._read_step_by_step(places, discounts)
        return Batch(*_read_rows(list(vars(self).values()), places, discounts))

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


def _room_for_batch(
    stored: list[Tensor], places: Int[Tensor, "K B"], discounts: list[float]
) -> tuple[Tensor, ...]:
    del discounts
    observations, actions, rewards, *_ = stored
    numbers = places.new_empty(places.shape, dtype=rewards.dtype)
    return (
        numbers.new_empty(*places.shape, observations.shape[-1]),
        numbers.new_empty(*places.shape, actions.shape[-1]),
        numbers,
        numbers.new_empty(*places.shape, observations.shape[-1]),
        torch.empty_like(numbers),
        torch.empty_like(numbers),
    )


@dispatch.operator(
    "(Tensor[] stored, Tensor places, float[] discounts) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _room_for_batch,
)
def _read_rows(
    stored: list[Tensor], places: Int[Tensor, "K B"], discounts: list[float]
) -> tuple[Tensor, ...]:
    batch = _room_for_batch(stored, places, discounts)
    _read(
        tuple(array.numpy() for array in stored),
        places.numpy(),
        np.array(discounts, np.float32),
        tuple(array.numpy() for array in batch),
    )
    return batch


@_kernel
def _read(
    stored: tuple[NDArray[Any], ...],
    places: NDArray[np.int64],
    discounts: NDArray[np.float32],
    batch: tuple[NDArray[Any], ...],
) -> None:
    """Fill a batch; see `Stored.read`.

    Most of what is read is far from the processor. All rows of a task take a step before any takes
    the next: it can wait for several of them at once.
    """
    observations, actions, rewards, terminated, next_slots, begins, starts = stored
    observed, acted, earned, following, ended, steps = batch
    B = places.shape[1]
    slots, goes_on = np.empty(B, np.int64), np.empty(B, np.bool_)
    for k in range(places.shape[0]):
        for b in range(B):
            slots[b] = starts[places[k, b], k] % len(starts)
            goes_on[b] = True
            earned[k, b] = steps[k, b] = 0
        for b in range(B):
            _copy(observations[slots[b], k], observed[k, b])
            _copy(actions[slots[b], k], acted[k, b])
        for step in range(len(discounts)):
            for b in range(B):
                if not goes_on[b]:
                    continue
                slot = slots[b]
                earned[k, b] += discounts[step] * rewards[slot, k]
                steps[k, b] += 1
                ended[k, b] = terminated[slot, k]
                slots[b] = next_slots[slot, k]
                if step + 1 < len(discounts):
                    goes_on[b] = not terminated[slot, k] and begins[slots[b], k]
        for b in range(B):
            _copy(observations[slots[b], k], following[k, b])


@_kernel
def _copy(given: NDArray[np.float32], result: NDArray[np.float32]) -> None:
    """Write numbers one by one: of so few, a library's copy takes longer."""
    for i in range(len(result)):
        result[i] = given[i]
