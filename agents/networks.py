"""Actor and critics, and the multi-layer perceptrons they are, shared by K tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtrl.activation import Activation
from mtrl.gradients import Tape
from mtrl.layers import Layer, chain

from .config import SACConfig
from .distributions import SquashedGaussian
from .values import CategoricalValues, ScalarValues, Values


class MLP(nn.Module):
    """E networks of one shape, shared by K tasks and told which task they are in.

    The task's one-hot is appended to the inputs and, if asked for, an embedding of the task, which
    each network learns for itself. Hidden layers are affine, layer norm (without parameters of its
    own) if asked for, ReLU. All E networks are stacked in one tensor per layer, so a layer is one
    batched product.

    Args:
        sizes: Width of the input (without what stands for the task), of each hidden layer and of
            the output.
        num_tasks: K; 0 for nothing that stands for the task.
        embedding_size: How many numbers are learned for each task beside the one-hot.
        generator: Draws the initial weights; its device is where they live.
        members: E.
        layer_norm: Normalise hidden layers before the ReLU.
        residual: Let the hidden layers after the first, two by two, add to what enters them:
            affine, norm, ReLU, affine, norm (Nauman et al., "Bigger, Regularized, Optimistic",
            2024, https://arxiv.org/abs/2405.16158). The number of hidden layers is then odd.
        dtype: What matrix products are computed in. Parameters and results are float32, or
            float64 if this is.

    Raises:
        ValueError: An embedding of no tasks.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        num_tasks: int,
        generator: torch.Generator,
        embedding_size: int = 0,
        members: int = 1,
        layer_norm: bool = False,
        residual: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.layer_norm = layer_norm
        self.residual = residual
        self.dtype = dtype
        self._one_hot = num_tasks > 0
        if embedding_size and not num_tasks:
            raise ValueError(f"no tasks to learn {embedding_size} numbers for: `num_tasks` is 0.")
        wide = torch.promote_types(dtype, torch.float32)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            fan_in += num_tasks + embedding_size if layer == 0 else 0
            for values, rows in ((self.weights, fan_in), (self.biases, 1)):
                drawn = _uniform((members, rows, fan_out), fan_in, generator)
                values.append(nn.Parameter(drawn.to(wide)))
        self._embeds = embedding_size > 0
        if self._embeds:
            # About as long as a one-hot.
            shape, scale = (members, num_tasks, embedding_size), embedding_size**-0.5
            drawn = torch.randn(shape, generator=generator, device=generator.device).mul_(scale)
            self.embedding = nn.Parameter(drawn.to(wide))
            self.embedding_bias = nn.Parameter(torch.zeros_like(self.embedding[:, :1]))
        self._chains = self._chained()

    def _chained(self) -> list[list[Layer]]:
        """Return layers that follow each other, up to where something is added.

        Once, as looking one up in a `ParameterList` takes longer than adding it to a small layer.
        """
        last = len(self.weights) - 1
        layers = []
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            # With residual layers, 1 and 2 make a block, 3 and 4, ...
            ends_block = self.residual and number > 0 and number % 2 == 0
            hidden = Activation(norm=self.layer_norm, relu=not ends_block)
            activation = Activation() if number == last else hidden
            layers.append(Layer(weight, bias, activation, self._one_hot and number == 0))
        if not self.residual:
            return [layers]
        blocks = [layers[number : number + 2] for number in range(1, last, 2)]
        return [layers[:1], *blocks, layers[last:]]

    def forward(
        self, inputs: Float[Tensor, "#E K B I"], tape: Tape | None = None
    ) -> Float[Tensor, "E K B D"]:
        """Map inputs, one set for all networks or one each, to the networks' outputs.

        Args:
            inputs: Without what stands for the task.
            tape: Remembers the layers, to differentiate with respect to the parameters.
        """
        first, *blocks, last = self._chains if self.residual else ([], *self._chains)
        hidden = inputs.expand(self._chains[0][0].weight.shape[0], -1, -1, -1)
        if self._embeds:
            hidden = torch.cat([hidden, self._embedded(hidden, tape)], dim=-1)
        if first:
            hidden = chain(hidden, first, tape=tape, dtype=self.dtype)
        for block in blocks:
            hidden = hidden + chain(hidden, block, tape=tape, dtype=self.dtype)
        return chain(hidden, last, tape=tape, dtype=self.dtype)

    def _embedded(self, inputs: Tensor, tape: Tape | None) -> Tensor:
        # A layer without inputs but the one-hot, which selects the task's row.
        layer = Layer(self.embedding, self.embedding_bias, one_hot=True)
        return chain(inputs.detach()[..., :0], [layer], tape=tape, dtype=self.dtype)


def _uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    """Draw as torch's own `nn.Linear` does: uniform within ``1 / sqrt(fan_in)``."""
    bound = 1 / math.sqrt(fan_in)
    values = torch.rand(shape, generator=generator, device=generator.device)
    return values.mul_(2 * bound).sub_(bound)


class Critics(nn.Module):
    """Twin estimates of the soft action value, in one stacked network.

    Attributes:
        values: What the outputs mean.
    """

    def __init__(self, input_size: int, config: SACConfig, **options: Any) -> None:
        super().__init__()
        self.values = _values(config, options["generator"].device)
        hidden = [config.critic_width] * config.critic_depth
        self.mlp = MLP(
            [input_size, *hidden, self.values.num_outputs],
            members=2,
            layer_norm=config.layer_norm,
            residual=config.residual,
            **options,
        )

    def forward(
        self,
        observations: Float[Tensor, "K B O"],
        actions: Float[Tensor, "K B A"],
        tape: Tape | None = None,
    ) -> Float[Tensor, "2 K B Z"]:
        """Return both critics' outputs, which `values` decodes."""
        outputs: Tensor = self.mlp(torch.cat([observations, actions], dim=-1)[None], tape)
        return outputs


def _values(config: SACConfig, device: torch.device) -> Values:
    if config.critic_values == "scalar":
        return ScalarValues()
    return CategoricalValues(config.value_low, config.value_high, config.value_bins, device=device)


class Actor(nn.Module):
    """The policy: observation and task one-hot to a squashed Gaussian."""

    def __init__(
        self, observation_size: int, action_size: int, config: SACConfig, **options: Any
    ) -> None:
        super().__init__()
        sizes = [observation_size, *[config.actor_width] * config.actor_depth, 2 * action_size]
        self.mlp = MLP(sizes, layer_norm=config.layer_norm, **options)

    def forward(
        self, observations: Float[Tensor, "K B O"], tape: Tape | None = None
    ) -> SquashedGaussian:
        """Return the distribution over actions."""
        output: Tensor = self.mlp(observations[None], tape)
        return SquashedGaussian.from_output(output[0])
