"""Which of a task's goals each environment plays next."""

import numpy as np
from numpy.typing import NDArray

GOAL_ORDERS = ("random", "sequential", "once", "official")
NUM_GOALS = 50

_WORD = 2**64


class GoalSchedule:
    """Draw the goal index of every new episode of K*N environments, task-major.

    `random` draws uniformly, each environment from a generator of its own, so neither tasks nor
    the environments of a task share a sequence. `sequential` gives environment n of a task the
    goals n, n+N, n+2N, ... (modulo the number of goals), which covers each goal exactly once in
    50/N episodes where N divides 50. `once` does too, but each environment comes to an end before
    goals repeat, for any N. `official` draws as the package does: all environments from
    equal generators, so that all play the same sequence, and no reset reseeds them.
    """

    def __init__(self, order: str, *, num_tasks: int, envs_per_task: int, seed: int) -> None:
        """Start every environment's sequence.

        Args:
            order: `random`, `sequential` or `official`.
            num_tasks: K.
            envs_per_task: N.
            seed: Environment n of task k draws from child (k, n) of this seed.
        """
        self._order = order
        self._num_tasks = num_tasks
        self._envs_per_task = envs_per_task
        self.episodes = np.zeros(num_tasks * envs_per_task, np.int64)
        self._generators = self._generators_of(seed)

    def reseed(self, seed: int) -> None:
        """Replace all generators by those of `seed`, which the official order ignores."""
        if self._order != "official":
            self._generators = self._generators_of(seed)

    def _generators_of(self, seed: int) -> list[np.random.Generator]:
        shared = self._order == "official"
        return [
            np.random.Generator(
                np.random.PCG64(np.random.SeedSequence(seed, spawn_key=() if shared else (k, n)))
            )
            for k in range(self._num_tasks)
            for n in range(self._envs_per_task)
        ]

    def restart(self) -> None:
        """Put goals that are played in order back to their first; random goals draw on."""
        self.episodes[:] = 0

    def draw(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Draw the next goal index of the environments `indices` (M,): (M,) in [0, 50)."""
        if self._order not in ("sequential", "once"):
            drawn = [self._generators[index].integers(NUM_GOALS) for index in indices]
            return np.array(drawn, np.int64)
        steps = self.episodes[indices] * self._envs_per_task
        self.episodes[indices] += 1
        return (indices % self._envs_per_task + steps) % NUM_GOALS

    def is_exhausted(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which of the environments `indices` (M,) have no goal left to play: (M,)."""
        if self._order != "once":
            return np.zeros(len(indices), np.bool_)
        following = indices % self._envs_per_task + self.episodes[indices] * self._envs_per_task
        return np.asarray(following >= NUM_GOALS)

    def get_state(self) -> NDArray[np.uint64]:
        """Return the generators' states (K*N, 6): PCG64's two 128-bit words, then its buffer."""
        return np.array([_pack(generator) for generator in self._generators], np.uint64)

    def set_state(self, state: NDArray[np.uint64]) -> None:
        """Restore what `get_state` returned.

        Raises:
            ValueError: if the state is not for K*N environments.
        """
        expected = (len(self._generators), 6)
        if state.shape != expected:
            raise ValueError(f"`generators` has shape {state.shape}, expected {expected}")
        for generator, words in zip(self._generators, state.tolist(), strict=True):
            _unpack(generator, words)


def _pack(generator: np.random.Generator) -> list[int]:
    state = generator.bit_generator.state
    words = [*divmod(state["state"]["state"], _WORD), *divmod(state["state"]["inc"], _WORD)]
    return [*words, state["has_uint32"], state["uinteger"]]


def _unpack(generator: np.random.Generator, words: list[int]) -> None:
    state_high, state_low, inc_high, inc_low, has_uint32, uinteger = words
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": state_high * _WORD + state_low, "inc": inc_high * _WORD + inc_low},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
