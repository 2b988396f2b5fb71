"""The agent's options."""

import re

import pytest

from agents import SACConfig
from mtrl.errors import UserError


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("critic_width", 0),
        ("actor_depth", -1),
        ("critic_learning_rate", 0.0),
        ("critic_learning_rate", float("inf")),
        ("max_gradient_norm", float("inf")),
        ("initial_temperature", -0.1),
        ("initial_temperature", 1e-300),
        ("initial_temperature", 1e39),
        ("value_high", 1e300),
        ("n_steps", 10**12),
        ("reward_scale", float("nan")),
        ("discount", 1.01),
        ("target_rate", 0.0),
        ("actor_average_rate", 0.0),
        ("actor_average_rate", 1.5),
        ("exploration_correlation", -0.1),
        ("exploration_correlation", 1.0),
        ("exploration_correlation", float("nan")),
        ("gradnorm_alpha", -0.5),
        ("gradnorm_actor_alpha", float("inf")),
    ],
)
def test_options_that_cannot_work_are_named(option, value):
    flag = option.replace("_", "-")
    with pytest.raises(UserError, match=f"`--{flag}` must be .*, found {re.escape(str(value))}"):
        SACConfig(**{option: value})
