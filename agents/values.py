"""What a critic's outputs mean: a value itself, or a distribution over values."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention


class ScalarValues:
    """One output, which is the value; learned by squared error."""

    num_outputs = 1

    def decode(self, outputs: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch"]:
        """Return the values."""
        return outputs.squeeze(-1)

    def losses(
        self, outputs: Float[Tensor, "members *batch 1"], targets: Float[Tensor, "*batch"]
    ) -> Float[Tensor, members * batch]:
        """Return the squared errors."""
        return (self.decode(outputs) - targets).square()


class CategoricalValues:
    """A histogram over Z equal bins, whose mean is the value; learned by cross-entropy.

    The target is a normal distribution around the scalar target, cut into the same bins
    ("HL-Gauss", Farebrother et al., "Stop Regressing", 2024, https://arxiv.org/abs/2403.03950). How
    steep the loss is does not depend on the size of the values, so tasks that differ in it share a
    network more easily.

    Args:
        low: Left end of the first bin; values below become this.
        high: Right end of the last bin.
        num_bins: Z.
        device: Where the outputs are.
    """

    WIDTH = 0.75
    """Standard deviation of a target's normal distribution, in bins, as in the paper."""

    def __init__(
        self, low: float, high: float, num_bins: int, *, device: torch.device | str = "cpu"
    ) -> None:
        self.num_outputs = num_bins
        self._low, self._high = low, high
        bin_width = (high - low) / num_bins
        self._edges = torch.linspace(low, high, num_bins + 1, dtype=torch.float64, device=device)
        self._centers = self._edges[:-1] + bin_width / 2
        self._scale = 1 / (math.sqrt(2) * self.WIDTH * bin_width)

    def decode(self, outputs: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch"]:
        """Return the means."""
        return outputs.softmax(dim=-1) @ self._centers.to(outputs.dtype)

    def encode(self, values: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch Z"]:
        """Return the histograms that stand for values."""
        inside = values.clamp(self._low, self._high).unsqueeze(-1)
        # Twice the normal distribution's mass left of each edge; what lies outside is shared out.
        below = torch.erf((self._edges.to(values.dtype) - inside) * self._scale)
        mass = below.diff(dim=-1)
        return mass / (below[..., -1:] - below[..., :1])

    def losses(
        self, outputs: Float[Tensor, "members *batch Z"], targets: Float[Tensor, "*batch"]
    ) -> Float[Tensor, members * batch]:
        """Return the cross-entropies."""
        return -(self.encode(targets) * F.log_softmax(outputs, dim=-1)).sum(dim=-1)


Values = ScalarValues | CategoricalValues
