"""The squashed Gaussian policy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


@dataclass(frozen=True)
class SquashedGaussian:
    """A diagonal Gaussian passed through tanh, so that actions lie in [-1, 1].

    Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018, appendix C
    (https://arxiv.org/abs/1812.05905).

    Attributes:
        mean: Of the Gaussian, ``(..., A)``.
        log_std: Of the Gaussian, ``(..., A)``.
    """

    mean: Float[Tensor, "*batch A"]
    log_std: Float[Tensor, "*batch A"]

    @classmethod
    def from_output(cls, output: Float[Tensor, "*batch D"]) -> SquashedGaussian:
        """Read mean and log standard deviation off a network's output, ``D = 2 A`` wide."""
        mean, log_std = output.chunk(2, dim=-1)
        return cls(mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX))

    def mode(self) -> Float[Tensor, "*batch A"]:
        """Return the action at the Gaussian's mean."""
        return self.mean.tanh()

    def actions(self, noise: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        """Return the actions that `sample` would, without their log-densities."""
        return self._gaussian(noise).tanh()

    def _gaussian(self, noise: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        return self.mean + self.log_std.exp() * noise

    def sample(
        self, noise: Float[Tensor, "*batch A"]
    ) -> tuple[Float[Tensor, "*batch A"], Float[Tensor, "*batch"]]:
        """Reparametrise standard normal noise.

        Returns:
            Actions in [-1, 1], and their log-densities, both differentiable.
        """
        gaussian = self._gaussian(noise)
        log_density = -0.5 * (noise.square() + math.log(2 * math.pi)) - self.log_std
        # log(1 - tanh(x)^2), in a form that does not lose digits where tanh saturates.
        log_slope = 2 * (math.log(2) - gaussian - F.softplus(-2 * gaussian))
        return gaussian.tanh(), (log_density - log_slope).sum(dim=-1)
