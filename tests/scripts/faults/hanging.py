"""Trains on reach-v3 with the official rewards, which hang for good at the fortieth step."""

import itertools
import time

from metaworld import env_dict

from envs.engine import vector
from scripts.training import main

official = env_dict.ENV_CLS_MAP["reach-v3"]
evaluate, calls = official.evaluate_state, itertools.count(1)


def hang(env, *arguments):
    """Evaluate, or not."""
    if next(calls) == 80:
        time.sleep(10**6)
    return evaluate(env, *arguments)


official.evaluate_state = hang
vector.STEP_SECONDS = 2.0
main("reach-v3")
