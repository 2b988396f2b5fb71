"""Trains on toy tasks; a weight becomes NaN at the hundredth action. Options as usual."""

import math

import torch

from agents import SAC
from scripts.training import main

act, calls = SAC.act, 0


def poisoned(agent, observations, *, deterministic=False):
    """Act, and after a while as if a bit of memory had flipped."""
    global calls
    calls += 1
    if calls == 100:
        with torch.no_grad():
            next(agent.critics.parameters()).view(-1)[0] = math.nan
    return act(agent, observations, deterministic=deterministic)


SAC.act = poisoned
main("toy")
