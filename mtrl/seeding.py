"""Independent random streams from one seed."""

from __future__ import annotations

import numpy as np
import torch


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
