"""Named sets of options. A preset is data: it names options that anybody could give.

What each is for, what it costs and what it has reached stands in `docs/recipe.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

PresetName = Literal["default", "paper", "laptop", "gpu"]


@dataclass(frozen=True)
class Preset:
    """Options where they differ from those of `Config` and `SACConfig`.

    Attributes:
        steps_per_task: Environment steps of each task that training takes, if not told otherwise.
        options: Of `Config`.
        agent: Of `SACConfig`.
    """

    steps_per_task: int = 300_000
    options: Mapping[str, Any] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)


_LEARNED: Mapping[str, Any] = {
    "n_steps": 8,
    "exploration_correlation": 0.8,
    "actor_average_rate": 0.002,
    "temperature_learning_rate": 3e-3,
}
"""What pays wherever there is a simulator; see `docs/recipe.md`."""

TOY_AGENT: Mapping[str, Any] = {
    "n_steps": 1,
    "exploration_correlation": 0.0,
    "actor_average_rate": 1.0,
}
"""A toy task turns on each single action, so that rewards which followed from older ones mislead
and nothing lies further away, and its training is over before an average has caught up."""

PRESETS: dict[PresetName, Preset] = {
    "default": Preset(agent=_LEARNED),
    # Meta-World+'s multi-task SAC (McLean et al., "Meta-World+", 2025), as published: one
    # environment and one update per step of each task. Its plain sum of losses, with which its
    # numbers were reached, is `--critic-weighting uniform --actor-weighting uniform`.
    "paper": Preset(
        steps_per_task=2_000_000,
        options={"envs_per_task": 1, "update_ratio": 1.0, "batch_size": 128, "overlap": False},
        agent={
            "critic_width": 400,
            "critic_depth": 3,
            "actor_width": 400,
            "actor_depth": 3,
            "layer_norm": False,
            "critic_learning_rate": 3e-4,
            "actor_learning_rate": 3e-4,
            "temperature_learning_rate": 3e-4,
            "target_rate": 0.005,
            "target_entropy": -4.0,
            "initial_temperature": 1.0,
            "reward_scale": 1.0,
        },
    ),
    # The default was chosen on two cores, for an hour or two of them.
    "laptop": Preset(agent=_LEARNED),
    "gpu": Preset(
        steps_per_task=2_000_000,
        options={"envs_per_task": 32, "update_ratio": 0.25, "batch_size": 128},
        agent={**_LEARNED, "critic_width": 1024, "critic_depth": 3, "residual": True},
    ),
}
