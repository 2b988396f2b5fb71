"""Independent random streams from one seed."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def make_generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator whose stream belongs to this seed and this purpose alone.

    Drawing more numbers for one purpose then changes nothing for the others: two runs that differ
    in their weighting see the same action noise.

    Args:
        seed: The run's seed, at least 0.
        purpose: What the numbers are for, such as "replay".
        device: Where they are needed.
    """
    entropy = np.random.SeedSequence([seed, *purpose.encode()])
    return torch.Generator(device).manual_seed(int(entropy.generate_state(1, np.uint64)[0]))


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Go on with the stream whose `get_state` this was.

    On another kind of device, whose states have another form, a new stream begins that follows
    from the saved one.

    Raises:
        RuntimeError, TypeError: `state` is no generator's.
    """
    if state.shape == generator.get_state().shape:
        generator.set_state(state)
    else:
        digest = hashlib.sha256(state.numpy().tobytes()).digest()
        generator.manual_seed(int.from_bytes(digest[:8], "little"))
