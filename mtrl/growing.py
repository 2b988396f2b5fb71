"""Transitions of several steps that still grow: with each step, until they span n or end.

What a transition sums up is found once, while it is written, not each time it is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import stored
from .compiler import Compiler
from .stored import LAST, NEXT, REWARD, SPAN, TOTAL, record_type
from .types import Batch

NEVER = -(2**62)
"""The number of an observation that there was not."""

_kernel = Compiler("growing", Path(__file__), Path(stored.__file__)).kernel


class Growing:
    """The transitions that began in the last n steps of N environments of each of K tasks.

    It lives on the host, wherever the replay does.

    Args:
        shape: K and N.
        discounts: Of the first step's reward, the second's, ...: n of them.
        action_size: A.
        capacity: C, how many observations are kept of a task.
    """

    def __init__(
        self, shape: tuple[int, int], discounts: Sequence[float], action_size: int, capacity: int
    ) -> None:
        self._discounts = np.asarray(discounts, np.float32)
        self._capacity = capacity
        # A ring of n steps, in which a transition lies where it began.
        self._records = np.zeros((len(discounts), *shape), record_type(action_size))
        self._numbers = np.full((len(discounts), *shape), NEVER)
        self._grows = np.zeros((len(discounts), *shape), np.bool_)
        self._now = 0

    def step(
        self,
        before: NDArray[np.int64],
        after: NDArray[np.int64],
        transitions: Batch,
        left_out: NDArray[np.bool_],
        over: NDArray[np.bool_],
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Take a step from observations to others, numbered from the beginning of time.

        Args:
            before: The numbers of the former ``(K, N)``.
            after: And of the latter.
            transitions: From the former to the latter ``(K, N, ...)``.
            left_out: Where no earlier transition may go on with it.
            over: Where none may go on from it.

        Returns:
            Where those that begin or go on with it lie in a flat view of the ring's ``(C, K)``, but
            for what the ring has forgotten, and their records ``(M, R)``.
        """
        n, K, N = self._numbers.shape
        self._now = (self._now + 1) % n
        rows = np.empty(n * K * N, np.int64)
        grown = np.empty((n * K * N, self._records.itemsize), np.uint8)
        count = _step(
            self._records.view(np.uint8).reshape(n, K, N, -1),
            self._numbers,
            self._grows,
            self._now,
            before,
            after,
            transitions.actions.float().cpu().numpy(),
            transitions.rewards.float().cpu().numpy(),
            transitions.terminated.float().cpu().numpy(),
            left_out,
            over,
            self._discounts,
            self._capacity,
            rows,
            grown,
        )
        return rows[:count], grown[:count]

    def restore(
        self,
        records: NDArray[Any],
        begins: NDArray[np.bool_],
        latest: NDArray[np.int64],
        over: NDArray[np.bool_],
    ) -> None:
        """Find again what goes on from the environments' last observations.

        Args:
            records: Of all slots ``(C, K)``.
            begins: Where transitions begin ``(C, K)``.
            latest: The observations' numbers ``(K, N)``.
            over: Where nothing goes on from them.
        """
        C, tasks = self._capacity, np.arange(len(latest))[:, None]
        begin, task = np.nonzero(begins)
        # From each observation back to the one before; none is 0 slots away.
        distances = np.zeros_like(records["next"])
        distance = records["next"][begin, task]
        distances[(begin + distance) % C, task] = distance
        self._now, numbers, found = 0, latest, ~over
        for age in range(len(self._discounts)):
            distance = np.where(found, distances[numbers % C, tasks], 0)
            numbers, found = numbers - distance, distance > 0
            self._records[-age] = records[numbers % C, tasks]
            self._numbers[-age] = np.where(found, numbers, NEVER)
            self._grows[-age] = found & (self._records[-age]["span"] > 0)


@_kernel
def _step(
    records: NDArray[np.uint8],
    numbers: NDArray[np.int64],
    grows: NDArray[np.bool_],
    now: int,
    before: NDArray[np.int64],
    after: NDArray[np.int64],
    actions: NDArray[np.float32],
    rewards: NDArray[np.float32],
    terminated: NDArray[np.float32],
    left_out: NDArray[np.bool_],
    over: NDArray[np.bool_],
    discounts: NDArray[np.float32],
    capacity: int,
    rows: NDArray[np.int64],
    grown: NDArray[np.uint8],
) -> int:
    """Begin a transition and go on with others; write those that changed, and tell how many."""
    floats, slots = records.view(np.float32), records.view(np.int32)
    distances, spans = records.view(np.uint16), records.view(np.int16)
    n, K, N = numbers.shape
    count = 0
    for k in range(K):
        oldest = after[k].max() + 1 - capacity
        for e in range(N):
            numbers[now, k, e], grows[now, k, e] = before[k, e], True
            for i in range(actions.shape[2]):
                floats[now, k, e, i] = actions[k, e, i]
            floats[now, k, e, TOTAL] = 0
            floats[now, k, e, REWARD] = rewards[k, e]
            distances[now, k, e, NEXT] = after[k, e] - before[k, e]
            spans[now, k, e, SPAN] = 0
            for age in range(n):
                place = (now - age) % n
                if age > 0 and left_out[k, e]:
                    grows[place, k, e] = False
                if not grows[place, k, e]:
                    continue
                floats[place, k, e, TOTAL] += discounts[age] * rewards[k, e]
                slots[place, k, e, LAST] = after[k, e] % capacity
                spans[place, k, e, SPAN] += 1
                if terminated[k, e] > 0:
                    spans[place, k, e, SPAN] *= -1
                grows[place, k, e] = not (terminated[k, e] > 0 or over[k, e])
                if numbers[place, k, e] >= oldest:
                    rows[count] = numbers[place, k, e] % capacity * K + k
                    for i in range(grown.shape[1]):
                        grown[count, i] = records[place, k, e, i]
                    count += 1
    return count


def grow(
    records: NDArray[Any],
    next_slots: NDArray[np.int32],
    terminated: NDArray[np.bool_],
    begins: NDArray[np.bool_],
    discounts: Sequence[float],
) -> None:
    """Find what transitions sum up, of records that know their first step alone.

    Args:
        records: Of all slots in use ``(C, K)``; their totals, last slots and spans are written.
        next_slots: Where the first step led ``(C, K)``.
        terminated: Where the task ended with the first step ``(C, K)``.
        begins: Where transitions begin ``(C, K)``.
        discounts: Of the first step's reward, the second's, ...
    """
    first, *later = np.asarray(discounts, np.float32)
    for k in range(records.shape[1]):
        rewards, is_stored, over = records["reward"][:, k], begins[:, k], terminated[:, k]
        following = next_slots[:, k]
        total, last, ended = first * rewards, following.copy(), over.copy()
        span = np.ones(len(records), np.int16)
        growing = np.flatnonzero(is_stored)
        for discount in later:
            growing = growing[~ended[growing] & is_stored[last[growing]]]
            via = last[growing]
            total[growing] += discount * rewards[via]
            span[growing] += 1
            ended[growing], last[growing] = over[via], following[via]
        records["total"][:, k], records["last"][:, k] = total, last
        records["span"][:, k] = np.where(ended, -span, span)
