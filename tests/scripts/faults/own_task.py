"""Trains on a task of one's own that goes wrong as FAULTS says. Options as usual.

Each word of FAULTS happens in the twentieth step of an episode; with FOR_GOOD the last one goes on
happening in every step.
"""

import os

from metaworld.env_dict import ENV_CLS_MAP

from envs import register_task
from scripts.training import main

FAULTS, FOR_GOOD = os.environ["FAULTS"].split(), "FOR_GOOD" in os.environ
seen = 0


def fault_due(step):
    """Tell what is to go wrong in that step of an episode, if anything."""
    global seen
    if seen < len(FAULTS) and step == 20:
        seen += 1
        return FAULTS[seen - 1]
    return FAULTS[-1] if FOR_GOOD and seen == len(FAULTS) else None


class OwnReach(ENV_CLS_MAP["reach-v3"]):
    """Reaching, with mistakes."""

    def evaluate_state(self, obs, action):
        """Reward as usual, or spoil the number, the observation or the simulation; or raise."""
        reward, info = super().evaluate_state(obs, action)
        match (fault_due(self.curr_path_length) or "none").split("="):
            case "reward", value:
                reward = float(value)
            case "observation", value:
                obs[5] = float(value)
            case "velocity", value:
                self.data.qvel[:] = float(value)
            case "gravity", value:  # which a reset of the simulation does not undo
                self.model.opt.gravity[:] = float(value)
            case ["raise"]:
                raise ZeroDivisionError("in a reward of one's own")
        return reward, info


register_task("own-reach", OwnReach)
main("own-reach")
