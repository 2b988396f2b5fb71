"""Affine layers of E networks for the batches of K tasks, which a `Tape` can remember."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True)
class Layer:
    """The affine maps of E networks and what follows them.

    Attributes:
        weight: ``(E, J, D)``, where ``J = I``, or ``J = I + K`` with `one_hot`.
        bias: ``(E, 1, D)``, added to every row.
        activation: What follows.
        one_hot: Act as if the inputs went on with the one-hot of their task. As its product with
            the weight is one row of the weight, that row is added and nothing multiplied.
    """

    weight: Tensor
    bias: Tensor
    activation: Activation = Activation()  # noqa: RUF009 - it cannot change
    one_hot: bool = False


def chain(
    inputs: Float[Tensor, "E K B I"],
    layers: Sequence[Layer],
    *,
    tape: Tape | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "E K B D"]:
    """Apply layers one after the other to the batches of K tasks.

    Args:
        inputs: Activations, one set per network. They and the weights stay as they are until the
            gradients have been combined.
        layers: At least one.
        tape: Where to remember this call, to differentiate with respect to the parameters task by
            task. There is no other way: for an ordinary backward pass they are constants.
        dtype: What the matrix products are computed in, and what enters the next one. Results are
            of the last weight's type.
    """
    if _go_through_tiles(inputs, layers, dtype):
        outputs: Tensor = _InTiles.apply(inputs, None if tape is None else tape.probe, layers, tape)
        return outputs
    *hidden, last = layers
    for layer in hidden:
        # What goes straight into a product of bf16 is best rounded at once, while it is at hand.
        inputs = _apply(inputs, layer, tape, dtype, dtype)
    return _apply(inputs, last, tape, dtype, last.weight.dtype)


def _apply(
    inputs: Tensor,
    layer: Layer,
    tape: Tape | None,
    dtype: torch.dtype,
    result_dtype: torch.dtype,
) -> Tensor:
    # A critic's value, rounded to bf16, would be worth little, and one column costs little.
    dtype = dtype if layer.weight.shape[-1] > 1 else layer.weight.dtype
    how = _How(layer, tape, dtype, result_dtype)
    outputs: Tensor = _Linear.apply(inputs, None if tape is None else tape.probe, how)
    return outputs


@dataclass(frozen=True)
class _How:
    """What autograd need not know of a layer."""

    layer: Layer
    tape: Tape | None
    dtype: torch.dtype
    result_dtype: torch.dtype


class _Linear(torch.autograd.Function):
    """A layer as one step of autograd, towards its inputs and the tape.

    Its own way back is what makes per-task gradients cheap: it hands a tape what entered and what
    came back, and multiplies no weight gradient.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, probe: Tensor | None, how: _How) -> Tensor:
        del probe  # it only leads back here
        ctx.how, ctx.shape, ctx.dtype = how, inputs.shape, inputs.dtype
        layer = how.layer
        E, K, B, I = inputs.shape  # noqa: E741
        of_inputs, added = layer.weight.detach(), layer.bias.detach()
        if layer.one_hot:
            of_inputs, added = of_inputs[:, :I], added + of_inputs[:, I:]
        low, of_inputs = inputs.detach().flatten(1, 2), of_inputs.to(how.dtype)
        if of_inputs.shape[-1] > 1:  # else they are multiplied as they are
            low = low.to(how.dtype)
        products = multiply(low, of_inputs).view(E, K, B, -1)
        outputs, kept = layer.activation.forward(
            products, added, keep=any(ctx.needs_input_grad), dtype=how.result_dtype
        )
        ctx.save_for_backward(low, of_inputs, *kept)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        low, of_inputs, *kept = ctx.saved_tensors
        how: _How = ctx.how
        errors, sums = how.layer.activation.backward(gradient, tuple(kept), how.dtype)
        _remember(how.tape, how.layer, low.view(ctx.shape), errors, sums)
        of_input = None
        if ctx.needs_input_grad[0]:
            # Without a tape a network is only looked through, and of twins often only one.
            product = multiply_rows_that_count if how.tape is None else multiply
            of_input = product(errors.flatten(1, 2), of_inputs.mT, ctx.dtype).view(ctx.shape)
        return of_input, None, None


def _remember(
    tape: Tape | None, layer: Layer, inputs: Tensor, errors: Tensor, sums: Tensor
) -> None:
    if tape is not None:
        blocks = TaskBlocks(inputs, errors)
        tape.layers.append(LayerJacobian(layer.weight, layer.bias, blocks, sums, layer.one_hot))


def _go_through_tiles(inputs: Tensor, layers: Sequence[Layer], dtype: torch.dtype) -> bool:
    """Tell whether layers are one call: where the processor multiplies tiles."""
    if dtype != torch.bfloat16:
        return False
    K, I = inputs.shape[1], inputs.shape[-1]  # noqa: E741
    largest = 0
    for number, layer in enumerate(layers):
        J, D = layer.weight.shape[1:]
        is_column_at_end = 0 < number == len(layers) - 1 and layer.activation == Activation()
        if I + K * layer.one_hot != J or I == 0 or (D == 1 and not is_column_at_end):
            return False
        if not layer.weight.dtype == layer.bias.dtype == torch.float32:
            return False
        largest, I = max(largest, I * D), D  # noqa: E741
    return amx.takes(inputs, inputs.shape[:3].numel() * largest, dtype)


class _InTiles(torch.autograd.Function):
    """Layers as one step of autograd, as `_Linear` is one of one; see `mtrl.amx.operators`."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, probe: Tensor | None, layers: Sequence[Layer], tape: Tape | None
    ) -> Tensor:
        del probe  # as in `_Linear`
        weights = [layer.weight.detach() for layer in layers]
        biases = [layer.bias.detach() for layer in layers]
        ctx.layers, ctx.tape = layers, tape
        ctx.norms = [layer.activation.norm for layer in layers]
        ctx.relus = [layer.activation.relu for layer in layers]
        ctx.keep = amx.NOTHING
        if any(ctx.needs_input_grad):
            ctx.keep = amx.FOR_INPUTS if tape is None else amx.ALL
        given = weights, biases, ctx.norms, ctx.relus, ctx.keep, weights[-1].dtype
        found = amx.apply(inputs.detach(), *given)
        if ctx.keep != amx.NOTHING:
            # With its history it would be kept by the tape that it is put on, and keep that.
            ctx.save_for_backward(inputs.detach(), *weights, *found)
        return found[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, *saved = ctx.saved_tensors
        layers: Sequence[Layer] = ctx.layers
        weights, found = saved[: len(layers)], saved[len(layers) :]
        size = inputs.shape[-1] * ctx.needs_input_grad[0]
        options = ctx.norms, ctx.relus, ctx.keep, size, inputs.dtype
        gradients = amx.go_back(gradient, found, weights, *options)
        of_inputs = gradients.pop(0) if size > 0 else None
        if ctx.tape is not None:
            sums, errors = gradients[: len(layers)], [*gradients[len(layers) :], gradient]
            results, *_ = amx.kept(found, ctx.norms, ctx.keep)
            entered = [inputs, *results]
            for n, layer in reversed(list(enumerate(layers))):
                _remember(ctx.tape, layer, entered[n], errors[n], sums[n])
        return of_inputs, None, None, None
