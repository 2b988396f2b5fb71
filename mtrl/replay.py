"""Experience replay with a leading task axis that stores each observation once."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import UserError
from .growing import Growing, grow
from .seeding import restore_generator
from .stored import FARTHEST, LONGEST, Stored
from .types import Batch, State

_COUNTS = ("written", "begun", "forgotten")


class Replay:
    """A ring of observations per task; a transition leads from one of them to another.

    What an environment sees after a step is what it sees before the next one, so it is stored once:
    a transition takes one slot, and the end of an episode one more, for its last observation. All
    tasks write in step as long as their episodes end together and nothing is left out, but each
    has its own place in the ring and its own number of transitions.

    Args:
        num_tasks: K.
        capacity: C, observations kept per task.
        observation_size: O.
        action_size: A.
        generator: Which transitions are sampled; its device is where the buffer lives.
        steps: n, how many steps a sampled transition spans: fewer where an episode ended, or where
            nothing is stored beyond.
        discount: Of the rewards that are added up, where there are several.

    Raises:
        UserError: If the capacity is not positive, or the steps are too many.
    """

    def __init__(
        self,
        num_tasks: int,
        capacity: int,
        observation_size: int,
        action_size: int,
        *,
        generator: torch.Generator,
        steps: int = 1,
        discount: float = 1.0,
    ) -> None:
        if capacity < 1:
            raise UserError(
                f"`capacity` must be at least 1 observation per task, found {capacity}."
            )
        if not 1 <= steps <= LONGEST:
            raise UserError(f"`steps` must be from 1 to {LONGEST}, found {steps}.")
        self.capacity = capacity
        self._num_tasks = K = num_tasks
        self._action_size = action_size
        self._generator = generator
        self._discounts = [discount**step for step in range(steps)]
        self._device = device = generator.device

        # What a count counts runs on from the beginning of time; number i lies in slot i % C.
        self._stored = Stored.allocate(capacity, K, observation_size, action_size, device)
        self._starts_on_host = self._stored.starts.cpu().numpy()  # the same memory if possible
        self._written = np.zeros(K, np.int64)  # observations
        self._begun = np.zeros(K, np.int64)  # transitions
        self._forgotten = np.zeros(K, np.int64)  # of these, the ones written over
        self._latest: NDArray[np.int64] | None = None  # (K, N) the environments' last observations
        self._over: NDArray[np.bool_] | None = None  # (K, N) whether nothing follows from those
        self._growing: Growing | None = None

        self._window = torch.zeros(2, K, 1, dtype=torch.int64, device=device)

    @property
    def generator(self) -> torch.Generator:
        """Which transitions are sampled."""
        return self._generator

    @property
    def size(self) -> int:
        """Transitions of the task that has the fewest."""
        return int((self._begun - self._forgotten).min())

    @staticmethod
    def bytes_needed(num_tasks: int, capacity: int, observation_size: int, action_size: int) -> int:
        """Return how much memory a replay of these sizes takes."""
        return num_tasks * capacity * Stored.bytes_a_slot(observation_size, action_size)

    def add(
        self,
        transitions: Batch,
        ended: NDArray[np.bool_] | None = None,
        left_out: NDArray[np.bool_] | None = None,
    ) -> None:
        """Store one step of N environments of each task, over the oldest if the ring is full.

        Args:
            transitions: ``(K, N, ...)``. Where the step before was stored and did not end an
                episode, its observations must be that step's next observations.
            ended: Whose episode ends with this step ``(K, N)``; by default everyone's.
            left_out: Whose transition is not to be stored ``(K, N)``; by default no one's.

        Raises:
            UserError: If the ring is too small for N, or N too large.
        """
        shape = transitions.rewards.shape[0], transitions.rewards.shape[1]
        if self.capacity < 3 * shape[1]:
            raise UserError(
                f"`capacity` is {self.capacity} observations per task, but a step of {shape[1]} "
                "environments takes up to 3 each: raise it or use fewer environments per task."
            )
        if 2 * shape[1] > FARTHEST:
            raise UserError(
                f"a step of {shape[1]} environments per task is more than {FARTHEST // 2}: use "
                "fewer."
            )
        if self._latest is None or self._over is None or self._growing is None:
            self._latest, self._over = np.zeros(shape, np.int64), np.ones(shape, np.bool_)
            self._growing = self._make_growing(shape)
        elif self._latest.shape != shape:
            raise UserError(f"a step of {self._latest.shape} transitions follows, found {shape}.")
        fresh, everyone = self._over, np.ones(shape, np.bool_)
        written = self._written.copy()
        before = np.where(fresh, self._allocate(fresh), self._latest)
        after = self._allocate(everyone)
        self._forget(written)
        if fresh.any():
            first = transitions.observations[torch.from_numpy(fresh)]
            self._put(self._rows(before)[fresh], observations=first)
        self._put(self._rows(after).ravel(), observations=transitions.next_observations)
        ended = everyone if ended is None else ended
        left_out = ~everyone if left_out is None else left_out
        over = ended | left_out  # what is left out may lead to anything
        rows, records = self._growing.step(before, after, transitions, left_out, over)
        self._put(rows, records=torch.from_numpy(records))
        self._begin(before, ~left_out)
        self._tell_window()
        self._latest, self._over = after, over

    def sample(self, batch_size: int) -> Batch:
        """Draw B transitions of each task, uniformly, with replacement, each task its own.

        Asks the device nothing, and its shapes depend on B alone.

        Args:
            batch_size: B.

        Returns:
            A batch ``(K, B, ...)``; a copy, later writes do not change it.

        Raises:
            UserError: If a task has no transition yet.
        """
        if self.size == 0:
            raise UserError("The replay is empty: add transitions of each task before sampling.")
        # A remainder of 62 random bits: uniform to one part in 10^12 for any capacity, and unlike
        # randint's own bound, that of each task may differ and live on the device.
        drawn = torch.randint(
            2**62, (self._num_tasks, batch_size), generator=self._generator, device=self._device
        )
        return self._stored.read(drawn, self._window)

    def _allocate(self, wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Number the next observations of each task, in the order of its environments (K, N)."""
        numbers: NDArray[np.int64] = self._written[:, None] + wanted.cumsum(axis=1) - 1
        self._written += wanted.sum(axis=1)
        return numbers

    def _make_growing(self, shape: tuple[int, int]) -> Growing:
        return Growing(shape, self._discounts, self._action_size, self.capacity)

    def _begin(self, numbers: NDArray[np.int64], stored: NDArray[np.bool_]) -> None:
        """Note where transitions begin, in the order of their slots, so that the oldest lead."""
        order = np.argsort(numbers, axis=1)
        numbers = np.take_along_axis(numbers, order, axis=1)
        stored = np.take_along_axis(stored, order, axis=1)
        places = self._begun[:, None] + stored.cumsum(axis=1) - 1
        self._begun += stored.sum(axis=1)
        slots = (numbers[stored] % self.capacity).astype(np.int32)
        self._put(self._rows(places)[stored], starts=torch.from_numpy(slots))
        self._starts_on_host.reshape(-1)[self._rows(places)[stored]] = slots

    def _forget(self, written: NDArray[np.int64]) -> None:
        """Forget the transitions whose first observation is written over, oldest first.

        Args:
            written: How many observations there were when the last of them were stored.
        """
        tasks = np.arange(self._num_tasks)
        while True:
            slots = self._starts_on_host[self._forgotten % self.capacity, tasks]
            oldest = self._numbers(slots, written)
            gone = (self._forgotten < self._begun) & (oldest < self._written - self.capacity)
            if not gone.any():
                return
            self._forgotten += gone

    def _numbers(self, slots: NDArray[np.int32], written: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which of each task's last C observations, of so many, lie in slots (..., K)."""
        numbers: NDArray[np.int64] = written - 1 - (written - 1 - slots) % self.capacity
        return numbers

    def _tell_window(self) -> None:
        """Tell the device in which places of the ring of starts those are that can be sampled."""
        window = np.stack([self._forgotten % self.capacity, self._begun - self._forgotten])
        self._window.copy_(torch.from_numpy(window)[..., None])

    def _rows(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each task's numbers (K, N) lie in a flat view."""
        return numbers % self.capacity * self._num_tasks + np.arange(self._num_tasks)[:, None]

    def _put(self, rows: NDArray[np.int64], **values: Tensor) -> None:
        """Write values, in the order of `rows`, into rows of flat views."""
        there = torch.from_numpy(rows).to(self._device)
        for name, value in values.items():
            flat = self._flat(name)
            flat[there] = value.to(flat.device, flat.dtype).reshape(len(rows), *flat.shape[1:])

    def _flat(self, name: str) -> Tensor:
        array: Tensor = getattr(self._stored, name)
        return array.flatten(0, 1)

    def state_dict(self) -> State:
        """Return what is stored (copies or views), where writing goes on, and the generator."""
        used = min(int(self._written.max()), self.capacity)
        begun = min(int(self._begun.max()), self.capacity)
        starts = self._numbers(self._starts_on_host[:begun], self._written)
        return {
            **self._stored.first_steps(used),
            "starts": torch.from_numpy(starts),
            **{name: getattr(self, f"_{name}").copy() for name in _COUNTS},
            "latest": None if self._latest is None else self._latest.copy(),
            "over": None if self._over is None else self._over.copy(),
            "capacity": self.capacity,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on from a saved state.

        Raises:
            UserError: If it was saved with another capacity, number of tasks or kind of
                transitions, or contradicts itself; the replay is as it was.
        """
        if state["capacity"] != self.capacity:
            raise UserError(
                f"`capacity` is {self.capacity}, but the saved replay has {state['capacity']}: "
                "use the saved value."
            )
        self._check(state)
        for name in _COUNTS:
            getattr(self, f"_{name}")[:] = state[name]
        self._latest, self._over = copy.copy(state["latest"]), copy.copy(state["over"])
        self._stored.observations[: len(state["observations"])] = state["observations"]
        self._stored.starts[: len(state["starts"])] = state["starts"] % self.capacity
        self._starts_on_host = self._stored.starts.cpu().numpy()
        self._restore_records(state)
        self._tell_window()
        restore_generator(self._generator, state["generator"])

    def _restore_records(self, state: State) -> None:
        """Find again what transitions sum up, which is not saved, and which of them still grow."""
        actions, rewards, next_slots, terminated = (
            state[name].cpu().numpy() for name in ("actions", "rewards", "next_slots", "terminated")
        )
        all_records, begins = self._stored.on_host, self._begins()
        used = len(rewards)
        records = all_records[:used]
        records["actions"], records["reward"] = actions, rewards
        distances = (next_slots - np.arange(used)[:, None]) % self.capacity
        records["next"] = np.where(distances <= FARTHEST, distances, 0)  # not a transition's if 0
        grow(records, next_slots, terminated, begins[:used], self._discounts)
        self._stored.store(all_records)
        self._growing = None
        if self._latest is not None and self._over is not None:
            self._growing = self._make_growing(self._latest.shape)
            self._growing.restore(all_records, begins, self._latest, self._over)

    def _begins(self) -> NDArray[np.bool_]:
        """Find again at which slots transitions begin ``(C, K)``."""
        ages = (self._begun - 1 - np.arange(self.capacity)[:, None]) % self.capacity
        place, task = np.nonzero(ages < self._begun - self._forgotten)
        begins = np.zeros(ages.shape, np.bool_)
        begins[self._starts_on_host[place, task], task] = True
        return begins

    def _check(self, state: State) -> None:
        """Refuse what does not fit, lest it is found out by reading beside the arrays."""
        for name in _COUNTS:
            if (state[name].dtype, state[name].shape) != (np.int64, (self._num_tasks,)):
                raise UserError(
                    f"the saved replay has `{name}` {state[name].shape}: it is foreign."
                )
        written, begun = state["written"], state["begun"]
        used = min(int(written.max()), self.capacity)
        kinds = self._stored.first_steps(0)
        lengths = dict.fromkeys(kinds, used) | {"starts": min(int(begun.max()), self.capacity)}
        kinds["starts"] = torch.zeros(0, self._num_tasks, dtype=torch.int64)
        for name, length in lengths.items():
            own, saved = kinds[name], state[name]
            if (saved.dtype, tuple(saved.shape)) != (own.dtype, (length, *own.shape[1:])):
                raise UserError(
                    f"the saved replay has `{name}` {saved.dtype} {tuple(saved.shape)}, expected "
                    f"{own.dtype} {(length, *own.shape[1:])}: use as many tasks as were saved."
                )
        if not self._is_sound(state):
            raise UserError("the saved replay contradicts itself: use an earlier checkpoint.")

    def _is_sound(self, state: State) -> bool:
        """Whether counts, places and pointers of a state with the right arrays fit together."""
        C = self.capacity
        written, begun, forgotten = (state[name] for name in _COUNTS)
        size = begun - forgotten
        if (forgotten < 0).any() or (size < 0).any() or (size > C).any():
            return False
        starts, next_slots = (state[name].cpu().numpy() for name in ("starts", "next_slots"))
        if len(next_slots) and (next_slots.min() < 0 or next_slots.max() >= len(next_slots)):
            return False
        for k in range(self._num_tasks):
            numbers = starts[(forgotten[k] + np.arange(size[k])) % C, k]  # oldest first
            if (
                (numbers < max(written[k] - C, 0)).any()
                or (numbers >= written[k]).any()
                or (np.diff(numbers) <= 0).any()
            ):
                return False
            slots = numbers % C
            distances = (next_slots[slots, k] - slots) % C
            if (
                (distances == 0).any()
                or (distances > FARTHEST).any()
                or (numbers + distances >= written[k]).any()
            ):
                return False
        latest, over = state["latest"], state["over"]
        if latest is None or over is None:
            return latest is over and not written.any()
        return (
            latest.dtype == np.int64
            and over.dtype == np.bool_
            and latest.shape == over.shape == (self._num_tasks, latest.size // self._num_tasks)
            and 3 * latest.shape[1] <= C
            and bool((latest < written[:, None]).all() and (latest >= written[:, None] - C).all())
            and bool((latest >= 0).all())
        )
