"""Ways to weigh per-task gradients: one method a file, each a function of K x K numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch

from ..errors import UserError
from ..types import Weighting
from .chain import Chain
from .gradnorm import GradNorm
from .pcgrad import PCGrad
from .uniform import Uniform

__all__ = ["METHODS", "Chain", "GradNorm", "PCGrad", "Uniform", "make_weighting"]

METHODS = ("uniform", "pcgrad", "gradnorm", "gradnorm+pcgrad")


def make_weighting(
    name: str,
    num_tasks: int,
    *,
    generator: torch.Generator,
    alpha: float = 0.12,
    learning_rate: float = 1e-3,
) -> Weighting:
    """Build a weighting by name.

    Args:
        name: One of `METHODS`; "+" joins methods, the left one scaling what the right one sees.
        num_tasks: K.
        generator: PCGrad's visiting orders; its device is where all numbers will be.
        alpha: GradNorm's.
        learning_rate: GradNorm's, for the weights.

    Raises:
        UserError: If there is no such method.
    """
    builders: dict[str, Callable[[], Weighting]] = {
        "uniform": Uniform,
        "pcgrad": lambda: PCGrad(generator),
        "gradnorm": lambda: GradNorm(
            num_tasks, alpha=alpha, learning_rate=learning_rate, device=generator.device
        ),
    }
    if name not in METHODS:
        raise UserError(f"`weighting`: there is no {name!r}; choose one of {', '.join(METHODS)}.")
    return reduce(Chain, (builders[part]() for part in name.split("+")))
