import numpy as np
import pytest
import torch

from mtrl.types import Batch


@pytest.fixture(scope="session")
def stored():
    """Read all transitions of a replay, as many of each task, oldest first, ``(K, M, ...)``."""

    def stored(replay):
        state = replay.state_dict()
        (begun,), (forgotten,) = (set(state[name].tolist()) for name in ("begun", "forgotten"))
        starts = state["starts"][np.arange(forgotten, begun) % replay.capacity]
        slots = starts % replay.capacity
        tasks = np.arange(slots.shape[1])
        return Batch(
            observations=state["observations"][slots, tasks].transpose(0, 1),
            actions=state["actions"][slots, tasks].transpose(0, 1),
            rewards=state["rewards"][slots, tasks].transpose(0, 1),
            next_observations=state["observations"][
                state["next_slots"][slots, tasks].long(), tasks
            ].transpose(0, 1),
            terminated=state["terminated"][slots, tasks].transpose(0, 1).float(),
            steps=torch.ones(slots.shape).T,
        )

    return stored
