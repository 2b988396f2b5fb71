"""Multi-layer perceptrons, several side by side, whose parameters may carry a task axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from mtrl.gradients import linear


class MLP(nn.Module):
    """E networks of one shape, shared by K tasks.

    Hidden layers are affine, layer norm (without parameters of its own) if asked for, ReLU. All E
    networks are stacked in one tensor per layer, so a layer is one batched product. Under
    `torch.func.functional_call` every parameter may have a leading task axis; see
    `mtrl.gradients.expand_parameters`.

    Args:
        sizes: Width of the input, of each hidden layer and of the output.
        generator: Draws the initial weights; its device is where they live.
        members: E.
        layer_norm: Normalise hidden layers before the ReLU.
        dtype: What matrix products are computed in. Parameters and results are float32.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        generator: torch.Generator,
        members: int = 1,
        layer_norm: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.layer_norm = layer_norm
        self.dtype = dtype
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            self.weights.append(_uniform((members, fan_in, fan_out), fan_in, generator))
            self.biases.append(_uniform((members, 1, fan_out), fan_in, generator))

    @property
    def last_layer(self) -> str:
        """Name of the last layer's weight, the last that all tasks share."""
        return f"weights.{len(self.weights) - 1}"

    def forward(self, inputs: Float[Tensor, "#E K B I"]) -> Float[Tensor, "E K B D"]:
        """Map inputs, one set for all networks or one each, to the networks' outputs."""
        last = len(self.weights) - 1
        hidden = inputs.expand(self.weights[0].shape[-3], -1, -1, -1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = linear(hidden, weight, bias, self.dtype)
            if layer < last:
                if self.layer_norm:
                    hidden = F.layer_norm(hidden, hidden.shape[-1:])
                hidden = hidden.relu()
        return hidden


def append_one_hot(inputs: Float[Tensor, "K B I"]) -> Float[Tensor, "K B I+K"]:
    """Tell each row which task it belongs to, by the task's one-hot."""
    K, B, _ = inputs.shape
    one_hot = torch.eye(K, dtype=inputs.dtype, device=inputs.device)
    return torch.cat([inputs, one_hot[:, None, :].expand(K, B, K)], dim=-1)


def _uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> nn.Parameter:
    """Draw as torch's own `nn.Linear` does: uniform within ``1 / sqrt(fan_in)``."""
    bound = 1 / math.sqrt(fan_in)
    values = torch.rand(shape, generator=generator, device=generator.device)
    return nn.Parameter(values.mul_(2 * bound).sub_(bound))
