"""Experience replay with a leading task axis."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import UserError
from .types import Batch, State

_FIELDS = ("observations", "actions", "rewards", "next_observations", "terminated")


class Replay:
    """One preallocated ring buffer; all tasks write at the same place and read at their own.

    Args:
        num_tasks: K.
        capacity: Transitions kept per task.
        observation_size: O.
        action_size: A.
        generator: Which transitions are sampled; its device is where the buffer lives.

    Raises:
        UserError: If the capacity is not positive.
    """

    def __init__(
        self,
        num_tasks: int,
        capacity: int,
        observation_size: int,
        action_size: int,
        *,
        generator: torch.Generator,
    ) -> None:
        if capacity < 1:
            raise UserError(f"`capacity` must be at least 1 transition per task, found {capacity}.")
        self.capacity = capacity
        self.size = 0
        self._position = 0
        self._generator = generator

        def allocate(*shape: int) -> Tensor:
            return torch.zeros(num_tasks, capacity, *shape, device=generator.device)

        self._storage = Batch(
            observations=allocate(observation_size),
            actions=allocate(action_size),
            rewards=allocate(),
            next_observations=allocate(observation_size),
            terminated=allocate(),
        )
        self._rows = torch.arange(num_tasks, device=generator.device)[:, None]

    @staticmethod
    def bytes_needed(num_tasks: int, capacity: int, observation_size: int, action_size: int) -> int:
        """Return how much memory a replay of these sizes takes."""
        numbers = 2 * observation_size + action_size + 2
        return torch.float32.itemsize * num_tasks * capacity * numbers

    def add(self, transitions: Batch) -> None:
        """Store N transitions of each task, ``(K, N, ...)``, over the oldest if the ring is full.

        Raises:
            UserError: If N exceeds the capacity.
        """
        N = transitions.rewards.shape[1]
        if self.capacity < N:
            raise UserError(
                f"`capacity` is {self.capacity} transitions per task, but {N} arrive at once: "
                "raise the capacity or use fewer environments per task."
            )
        slots = (torch.arange(N) + self._position) % self.capacity
        slots = slots.to(self._rows.device)
        for name in _FIELDS:
            getattr(self._storage, name)[:, slots] = getattr(transitions, name).to(slots.device)
        self._position = (self._position + N) % self.capacity
        self.size = min(self.size + N, self.capacity)

    def sample(self, batch_size: int) -> Batch:
        """Draw B transitions of each task, uniformly, with replacement, each task its own.

        Args:
            batch_size: B.

        Returns:
            A batch ``(K, B, ...)``; a copy, later writes do not change it.

        Raises:
            UserError: If nothing has been stored yet.
        """
        if self.size == 0:
            raise UserError("The replay is empty: add transitions before sampling.")
        shape = (len(self._rows), batch_size)
        device = self._rows.device
        slots = torch.randint(self.size, shape, generator=self._generator, device=device)
        return Batch(*(getattr(self._storage, name)[self._rows, slots] for name in _FIELDS))

    def state_dict(self) -> State:
        """Return what is stored (views, not copies), where writing goes on, and the generator."""
        filled = {name: getattr(self._storage, name)[:, : self.size] for name in _FIELDS}
        return {
            "storage": filled,
            "position": self._position,
            "size": self.size,
            "capacity": self.capacity,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on from a saved state.

        Raises:
            UserError: If it was saved with another capacity or number of tasks.
        """
        tasks, saved_tasks = len(self._rows), len(state["storage"]["rewards"])
        if saved_tasks != tasks:  # one saved task would silently be copied to all
            raise UserError(
                f"`num_tasks` is {tasks}, but the saved replay has {saved_tasks} tasks: "
                "use the saved value."
            )
        if state["capacity"] != self.capacity:
            raise UserError(
                f"`capacity` is {self.capacity}, but the saved replay has {state['capacity']}: "
                "use the saved value."
            )
        self.size, self._position = state["size"], state["position"]
        for name in _FIELDS:
            getattr(self._storage, name)[:, : self.size] = state["storage"][name]
        self._generator.set_state(state["generator"])
