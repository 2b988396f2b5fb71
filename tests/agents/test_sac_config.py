"""The agent's options."""

import re

import pytest

from agents import SACConfig
from mtrl.errors import UserError

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *[
            (name, [0, -1])
            for name in ("critic_width", "critic_depth", "actor_width", "actor_depth")
        ],
        ("n_steps", [0, -1, 10**12]),
        *[
            (name, [0.0, -1.0, NAN, INFINITY])
            for name in (
                *("critic_learning_rate", "actor_learning_rate", "temperature_learning_rate"),
                *("max_gradient_norm", "reward_scale", "gradnorm_learning_rate"),
            )
        ],
        ("initial_temperature", [0.0, -0.1, -1.0, NAN, 1e-300, 1e39]),
        *[
            (name, [-0.1, -0.5, NAN, INFINITY])
            for name in ("gradnorm_alpha", "gradnorm_actor_alpha")
        ],
        ("task_embedding", [-1, -5]),
        ("reset_every", [-1, 2**24 + 1, 10**30]),
        ("learning_rate_half_life", [-1.0, 0.5, 1e-300, NAN, INFINITY]),
        ("discount", [-0.1, 1.01, 1.1, NAN]),
        ("target_rate", [0.0, 1.1]),
        ("actor_average_rate", [0.0, 1.5]),
        ("exploration_correlation", [-0.1, 1.0, NAN]),
        ("value_bins", [1, 0]),
        ("value_high", [-10.0, -11.0, NAN, INFINITY, 1e300]),
    ],
)
def test_options_that_cannot_work_are_named(name, values):
    flag = name.replace("_", "-")
    for value in values:
        found = re.escape(str(value))
        with pytest.raises(UserError, match=rf"^`--{flag}` must be .*, found {found}\.$"):
            SACConfig(**{name: value})
