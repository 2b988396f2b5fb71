"""Affine layers of E networks for the batches of K tasks, which a `Tape` can remember."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .activation import Activation
from .amx import operators as amx
from .blocks import TaskBlocks
from .gradients import LayerJacobian, Tape
from .products import multiply, multiply_rows_that_count


def linear(
    inputs: Float[Tensor, "E K B I"],
    weight: Float[Tensor, "E J D"],
    bias: Float[Tensor, "E 1 D"],
    *,
    activation: Activation = Activation(),  # noqa: B008 - it cannot change
    tape: Tape | None = None,
    dtype: torch.dtype = torch.float32,
    result_dtype: torch.dtype | None = None,
    one_hot: bool = False,
) -> Float[Tensor, "E K B D"]:
    """Apply the affine maps of E networks to the batches of K tasks, and what follows them.

    Args:
        inputs: Activations, one set per network. They and the weight stay as they are until the
            gradients have been combined.
        weight: ``J = I``, or ``J = I + K`` with `one_hot`.
        bias: Added to every row.
        activation: What follows.
        tape: Where to remember this call, to differentiate with respect to the parameters task by
            task. There is no other way: for an ordinary backward pass they are constants.
        dtype: What the matrix products are computed in.
        result_dtype: Of the result, by default that of the weights. What goes straight into a
            product of bf16 is best rounded at once, while it is at hand.
        one_hot: Act as if the inputs went on with the one-hot of their task. As its product with
            the weight is one row of the weight, that row is added and nothing multiplied.

    Returns:
        ``activation(inputs @ weight + bias)``.
    """
    # A critic's value, rounded to bf16, would be worth little, and one column costs little.
    dtype = dtype if weight.shape[-1] > 1 else weight.dtype
    layer = _Layer(weight, bias, activation, tape, dtype, result_dtype or weight.dtype, one_hot)
    outputs: Tensor = _Linear.apply(inputs, None if tape is None else tape.probe, layer)
    return outputs


@dataclass(frozen=True)
class _Layer:
    """What autograd need not know of a layer."""

    weight: Tensor
    bias: Tensor
    activation: Activation
    tape: Tape | None
    dtype: torch.dtype
    result_dtype: torch.dtype
    one_hot: bool


class _Linear(torch.autograd.Function):
    """A layer as one step of autograd, towards its inputs and the tape.

    Its own way back is what makes per-task gradients cheap: it hands a tape what entered and what
    came back, and multiplies no weight gradient.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, probe: Tensor | None, layer: _Layer) -> Tensor:
        del probe  # it only leads back here
        ctx.layer, ctx.shape, ctx.dtype = layer, inputs.shape, inputs.dtype
        others = layer.weight.dtype, layer.bias.dtype, layer.result_dtype
        ctx.in_tiles = amx.takes(inputs, layer.weight.shape[-1], layer.dtype, *others)
        if ctx.in_tiles:
            return _forward_in_tiles(ctx, inputs.detach(), layer)
        E, K, B, I = inputs.shape  # noqa: E741
        of_inputs, added = layer.weight.detach(), layer.bias.detach()
        if layer.one_hot:
            of_inputs, added = of_inputs[:, :I], added + of_inputs[:, I:]
        low, of_inputs = inputs.detach().flatten(1, 2), of_inputs.to(layer.dtype)
        if of_inputs.shape[-1] > 1:  # else they are multiplied as they are
            low = low.to(layer.dtype)
        products = multiply(low, of_inputs).view(E, K, B, -1)
        outputs, kept = layer.activation.forward(
            products, added, keep=any(ctx.needs_input_grad), dtype=layer.result_dtype
        )
        ctx.save_for_backward(low, of_inputs, *kept)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.in_tiles:
            return _backward_in_tiles(ctx, gradient), None, None
        low, of_inputs, *kept = ctx.saved_tensors
        layer: _Layer = ctx.layer
        errors, sums = layer.activation.backward(gradient, tuple(kept), layer.dtype)
        _remember(layer, low.view(ctx.shape), errors, sums)
        of_input = None
        if ctx.needs_input_grad[0]:
            # Without a tape a network is only looked through, and of twins often only one.
            product = multiply_rows_that_count if layer.tape is None else multiply
            of_input = product(errors.flatten(1, 2), of_inputs.mT, ctx.dtype).view(ctx.shape)
        return of_input, None, None


def _remember(layer: _Layer, inputs: Tensor, errors: Tensor, sums: Tensor) -> None:
    if layer.tape is not None:
        blocks = TaskBlocks(inputs, errors)
        layer.tape.layers.append(
            LayerJacobian(layer.weight, layer.bias, blocks, sums, layer.one_hot)
        )


def _forward_in_tiles(ctx: Any, inputs: Tensor, layer: _Layer) -> Tensor:
    given = inputs, layer.weight.detach(), layer.bias.detach()
    norm, relu, keep = layer.activation.norm, layer.activation.relu, any(ctx.needs_input_grad)
    outputs, kept, inverse = amx.apply(*given, norm, relu, keep, layer.result_dtype)
    ctx.save_for_backward(inputs, kept if norm else outputs, inverse, layer.weight.detach())
    return outputs


def _backward_in_tiles(ctx: Any, gradient: Tensor) -> Tensor | None:
    layer: _Layer = ctx.layer
    inputs, reference, inverse, weight = ctx.saved_tensors
    errors, sums, of_inputs = amx.go_back(
        gradient,
        reference,
        inverse,
        weight,
        layer.activation.norm,
        layer.activation.relu,
        layer.tape is not None,
        inputs.shape[-1] * ctx.needs_input_grad[0],
        ctx.dtype,
    )
    _remember(layer, inputs, errors, sums)
    return of_inputs if ctx.needs_input_grad[0] else None
