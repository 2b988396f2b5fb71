"""What several runs say together: robust means, their intervals, and who is likely better.

The statistics of Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice", https://arxiv.org/abs/2108.13264. Scores are ``(R, K)``: R runs that differ in their
seed only, K tasks. Every statistic takes leading axes ``*S`` and keeps them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

_BLOCK = 2**20
"""Scores resampled at once, which bounds memory to some ten megabytes."""


def iqm(scores: Float[np.ndarray, "*S R K"]) -> Float[np.ndarray, "*S"]:
    """Return the interquartile mean: the mean of the middle half of all R K scores.

    A quarter of the scores, rounded down, is left out at either end.
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return np.asarray(flat[..., cut : flat.shape[-1] - cut].mean(axis=-1))


def mean(scores: Float[np.ndarray, "*S R K"]) -> Float[np.ndarray, "*S"]:
    """Return the mean of all R K scores."""
    return np.asarray(scores.mean(axis=(-2, -1)))


def probability_of_improvement(
    ours: Float[np.ndarray, "*S R K"], theirs: Float[np.ndarray, "*S Q K"]
) -> Float[np.ndarray, "*S"]:
    """Return how probable it is that one of our runs beats one of theirs, averaged over tasks.

    Per task this is the Mann-Whitney statistic over R Q: the share of pairs of runs where ours
    scores higher, a tie counting half. One half says that neither is better.
    """
    one, other = ours[..., :, None, :], theirs[..., None, :, :]
    won = (one > other) + 0.5 * (one == other)
    return np.asarray(won.mean(axis=(-3, -2, -1)))


def bootstrap_interval(
    statistic: Callable[..., Float[np.ndarray, "*S"]],
    *scores: Float[np.ndarray, "_ K"],
    generator: np.random.Generator,
    samples: int = 10_000,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Return the stratified percentile bootstrap's interval of a statistic.

    Tasks are the strata: each task draws R of its own R runs with replacement, groups of runs
    independently. The result does not depend on the order of the runs.

    It tells of other seeds of the same tasks, not of other tasks, and with few runs it is too
    narrow: for a mean the bootstrap's variance is (R - 1) / R of the unbiased one.

    Args:
        statistic: Of as many groups as `scores` has, over the last two axes of each.
        scores: A group's runs; one for `iqm`, two for `probability_of_improvement`.
        generator: Draws the resamples.
        samples: How many there are.
        level: The share of them that the interval holds.

    Returns:
        Its ends; None if a group has a single run, which says nothing about other seeds.
    """
    if any(len(group) < 2 for group in scores):
        return None
    # Each task draws on its own, so sorting changes no distribution, only whose index is whose.
    groups = [np.sort(group, axis=0) for group in scores]
    block = max(1, _BLOCK // (groups[0].shape[1] * int(np.prod([len(g) for g in groups]))))
    sizes = np.diff([*range(0, samples, block), samples]).tolist()
    estimates = np.concatenate(
        [statistic(*(_resample(group, size, generator) for group in groups)) for size in sizes]
    )
    tail = (1 - level) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return float(low), float(high)


def _resample(
    scores: Float[np.ndarray, "R K"], samples: int, generator: np.random.Generator
) -> Float[np.ndarray, "S R K"]:
    drawn = generator.integers(len(scores), size=(samples, *scores.shape))
    return np.take_along_axis(scores[None], drawn, axis=1)
