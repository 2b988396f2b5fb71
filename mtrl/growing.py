"""Transitions of several steps that still grow: with each step, until they span n or end.

What a transition sums up is found once, while it is written, not each time it is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .stored import record_type
from .types import Batch

NEVER = -(2**62)
"""The number of an observation that there was not."""


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
    ) -> tuple[tuple[NDArray[np.int64], NDArray[np.intp]], NDArray[Any]]:
        """Take a step from observations to others, numbered from the beginning of time.

        Args:
            before: The numbers of the former ``(K, N)``.
            after: And of the latter.
            transitions: From the former to the latter ``(K, N, ...)``.
            left_out: Where no earlier transition may go on with it.
            over: Where none may go on from it.

        Returns:
            Number and task of the first observation of those that begin or go on with it, but for
            what the ring has forgotten, and their records.
        """
        n = len(self._discounts)
        rewards = transitions.rewards.float().cpu().numpy()
        terminated = transitions.terminated.float().cpu().numpy() > 0
        self._now = (self._now + 1) % n
        self._records[self._now] = 0
        new = self._records[self._now]
        new["actions"] = transitions.actions.float().cpu().numpy()
        new["reward"], new["next"] = rewards, after - before
        self._numbers[self._now] = before
        grows = self._grows & ~left_out
        grows[self._now] = True

        total, span = self._records["total"], self._records["span"]
        discounts = self._discounts[(self._now - np.arange(n)) % n]
        np.add(total, discounts[:, None, None] * rewards, out=total, where=grows)
        np.copyto(self._records["last"], after % self._capacity, where=grows)
        span += grows
        np.negative(span, out=span, where=grows & terminated)
        self._grows = grows & ~(terminated | over)

        oldest = after.max(axis=1, keepdims=True) + 1 - self._capacity
        chosen = np.nonzero(grows & (self._numbers >= oldest))
        return (self._numbers[chosen], chosen[1]), self._records[chosen]

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
        rewards, stored, over = records["reward"][:, k], begins[:, k], terminated[:, k]
        following = next_slots[:, k]
        total, last, ended = first * rewards, following.copy(), over.copy()
        span = np.ones(len(records), np.int16)
        growing = np.arange(len(records))[stored]
        for discount in later:
            growing = growing[~ended[growing] & stored[last[growing]]]
            via = last[growing]
            total[growing] += discount * rewards[via]
            span[growing] += 1
            ended[growing], last[growing] = over[via], following[via]
        records["total"][:, k], records["last"][:, k] = total, last
        records["span"][:, k] = np.where(ended, -span, span)
