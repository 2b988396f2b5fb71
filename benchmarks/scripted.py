"""What Meta-World's scripted policies do, for benchmarks that need something to be grasped."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRAMES_AND_GOAL = 39  # numbers of an observation without the one-hot, which policies don't know


def wanted_actions(policies: Sequence[Any], observations: Any) -> NDArray[np.float64]:
    """Ask each policy for the action (4,) it would take: (N, 4), not clipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # policies warn of their own large constants
        pairs = zip(policies, observations, strict=True)
        return np.array([policy.get_action(row[:FRAMES_AND_GOAL]) for policy, row in pairs])
