"""The options of the agent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mtrl.errors import UserError

WeightingName = Literal["uniform", "pcgrad", "gradnorm", "gradnorm+pcgrad"]


@dataclass(frozen=True)
class SACConfig:
    """Everything that shapes the agent."""

    critic_weighting: WeightingName = "gradnorm+pcgrad"
    """How the critics' per-task gradients are combined."""
    actor_weighting: WeightingName = "gradnorm+pcgrad"
    """How the actor's per-task gradients are combined."""
    critic_width: int = 256
    """Units in each hidden layer of a critic."""
    critic_depth: int = 2
    """Hidden layers of a critic."""
    actor_width: int = 256
    """Units in each hidden layer of the actor."""
    actor_depth: int = 2
    """Hidden layers of the actor."""
    task_embedding: int = 0
    """Size of a learned embedding of each task, beside the one-hot; 0 for none."""
    layer_norm: bool = True
    """Normalise the hidden layers of actor and critics."""
    residual: bool = False
    """Let the critics' hidden layers after the first, two by two, add to what enters them."""
    critic_values: Literal["scalar", "categorical"] = "scalar"
    """What critics give: a value, learned by squared error, or a distribution over bins."""
    value_bins: int = 101
    """How many bins a categorical critic has."""
    value_low: float = -10.0
    """Left end of the bins, in scaled reward."""
    value_high: float = 110.0
    """Right end of the bins. Meta-World's V2 rewards end at 10 a step, 1 after scaling."""
    twins: Literal["min", "mean"] = "min"
    """Which of the two critics' values counts: the lower, or their mean."""
    critic_learning_rate: float = 1e-3
    """Adam's, for the critics."""
    actor_learning_rate: float = 3e-4
    """Adam's, for the actor."""
    temperature_learning_rate: float = 3e-4
    """Adam's, for the logarithms of the temperatures."""
    learning_rate_half_life: float = 0.0
    """Updates in which the critics' and the actor's learning rates halve, little by little and over
    and over; 0 for rates that stay."""
    max_gradient_norm: float = 1.0
    """Longest combined gradient that reaches Adam; 1e9 is as good as no limit."""
    discount: float = 0.99
    """How much the next step's value counts."""
    n_steps: int = 1
    """Rewards taken from what happened before a critic's own estimate takes over."""
    target_rate: float = 0.025
    """Share of the critics that moves into their targets with each update."""
    actor_average_rate: float = 1.0
    """Share of the actor that moves with each update into the running average that acts where
    actions are deterministic; 1 for the actor itself."""
    target_entropy: float = -2.0
    """Entropy, in nats, that each task's temperature steers its policy towards."""
    initial_temperature: float = 0.01
    """Each task's weight of the entropy at the start."""
    exploration_correlation: float = 0.0
    """Correlation of the noise with which an environment's successive actions are drawn; 0 for
    noise that is drawn afresh."""
    reward_scale: float = 0.1
    """Rewards are multiplied by this before the critics see them."""
    normalize_rewards: bool = False
    """Divide each task's rewards by the largest it has learned from, per step, so that all tasks'
    have one size. `--reward-scale 1` then makes of any what 0.1 makes of Meta-World's, up to 10."""
    reset_every: int = 0
    """After every so many updates, put actor, critics and what is averaged of them back to how
    they began, with transitions, temperatures and the tasks' weights kept; 0 for never."""
    watch_conflicts: bool = True
    """Measure how far the tasks' gradients disagree even if the weighting does not need to know."""
    gradnorm_alpha: float = 0.12
    """How strongly GradNorm pulls the critics' tasks towards equal training rates."""
    gradnorm_actor_alpha: float = 0.0
    """The same for the actor, judged by the critics' losses, as its own change sign; 0 equalises
    gradient norms."""
    gradnorm_learning_rate: float = 1e-2
    """Adam's, for GradNorm's weights."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot work.

        Raises:
            UserError: Naming the option.
        """
        for name in ("critic_width", "critic_depth", "actor_width", "actor_depth", "n_steps"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in (
            "critic_learning_rate",
            "actor_learning_rate",
            "temperature_learning_rate",
            "max_gradient_norm",
            "initial_temperature",
            "reward_scale",
            "gradnorm_learning_rate",
        ):
            # JSON, in which a run keeps its options, has no infinity.
            positive = 0 < getattr(self, name) < math.inf
            _require(name, getattr(self, name), positive, "positive and finite")
        _require(
            "target_entropy", self.target_entropy, math.isfinite(self.target_entropy), "finite"
        )
        _require("task_embedding", self.task_embedding, self.task_embedding >= 0, "at least 0")
        # Adam counts in single precision, which ends there.
        countable = 0 <= self.reset_every <= 2**24
        _require("reset_every", self.reset_every, countable, "between 0 and 2^24")
        half_life = self.learning_rate_half_life
        _require(
            "learning_rate_half_life",
            half_life,
            half_life == 0 or 1 <= half_life < math.inf,
            "0, or at least 1 and finite",
        )
        for name in ("gradnorm_alpha", "gradnorm_actor_alpha"):
            sensible = 0 <= getattr(self, name) < math.inf
            _require(name, getattr(self, name), sensible, "at least 0 and finite")
        _require("n_steps", self.n_steps, self.n_steps <= 1000, "at most 1000, two episodes")
        temperature = self.initial_temperature
        _require(
            "initial_temperature",
            temperature,
            1e-37 <= temperature <= 1e37,
            "between 1e-37 and 1e37",
        )
        _require("value_bins", self.value_bins, self.value_bins >= 2, "at least 2")
        _require(
            "value_high",
            self.value_high,
            self.value_low < self.value_high <= 1e30 and self.value_low >= -1e30,
            f"above `--value-low` {self.value_low}, and both within 1e30 of 0",
        )
        _require(
            "critic_depth",
            self.critic_depth,
            not self.residual or self.critic_depth % 2 == 1,
            "odd with `--residual`, where layers after the first come in pairs",
        )
        _require("discount", self.discount, 0 <= self.discount <= 1, "between 0 and 1")
        correlation = self.exploration_correlation
        _require("exploration_correlation", correlation, 0 <= correlation < 1, "in [0, 1)")
        for name in ("target_rate", "actor_average_rate"):
            _require(name, getattr(self, name), 0 < getattr(self, name) <= 1, "in (0, 1]")


def _require(name: str, value: int | float, condition: bool, what: str) -> None:
    if not condition:
        flag = name.replace("_", "-")
        raise UserError(f"`--{flag}` must be {what}, found {value}.")
