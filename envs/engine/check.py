"""Does this machine round as the official environments do? Found out by comparing a few steps."""

from __future__ import annotations

import numpy as np

from .official import OfficialRewards
from .scene import MEASURES
from .simulation import Simulation
from .template import Template

_GOAL = 0
_STEPS = 5
_SEED = 0


def first_difference(
    simulation: Simulation,
    template: Template,
    row: int,
    python_rewards: OfficialRewards | None = None,
) -> str | None:
    """Step a row and its official environment side by side.

    Args:
        simulation: Holds the row, whose state is lost.
        template: of the row's task; its official environment is stepped.
        row: Which row to compare.
        python_rewards: Evaluates the row, where its task has no kernels.

    Returns:
        What differs first, or None where everything is equal.
    """
    snapshot = template.snapshot(_GOAL)
    simulation.restore(row, snapshot)
    if python_rewards is not None:
        python_rewards.restore(row, snapshot)
    template.reset_env(_GOAL)
    generator = np.random.default_rng(_SEED)
    for step in range(_STEPS):
        action = generator.uniform(-1.0, 1.0, 4).astype(np.float32)
        simulation.actions[row] = action
        simulation.step_rows(row, row + 1)
        if python_rewards is not None:
            python_rewards.evaluate(row)
        observation, reward, _, _, info = template.env.step(action)
        if not np.array_equal(observation, simulation.observations[row]):
            return f"the observation of step {step}"
        measures = simulation.measures[row]
        for name, value in {"reward": reward, **{name: info[name] for name in MEASURES}}.items():
            if float(value) != measures[name]:
                return f"{name} of step {step} ({float(value)!r}, here {measures[name]!r})"
    return None
