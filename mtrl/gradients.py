"""Per-task gradients in one backward pass, their Gramian, and the combined gradient.

The idea: an affine layer's gradient is a product of what went into it and what came back to it,
``inputs.T @ errors``, and the rows of both that belong to task k yield the gradient of task k. So a
backward pass that forms no weight gradient is all that is needed, whatever K is; a `Tape` keeps
what the products need. How they are multiplied out is decided by their shapes, see `TaskBlocks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from . import dispatch
from .amx import operators as amx
from .blocks import TaskBlocks
from .task_rows import rows_and_gramian, weighted_sums

COLUMNS = 1024
"""Of J, whose inner products are taken at a time where there are no kernels of our own: rows are
few and long, and a GPU's processors each take some of the columns."""


class Jacobian(list["LayerJacobian"]):
    """The gradients of K tasks with respect to all layers of a tape: the (K, P) Jacobian in parts.

    Attributes:
        together: The layers whose parts lie in one matrix, and that matrix.
    """

    together: tuple[list[LayerJacobian], Float[Tensor, "K _"]] | None = None


class Tape:
    """Remembers the layers of one forward pass on its way back; see `mtrl.layers.chain`.

    Attributes:
        layers: The tasks' gradients of each layer, last layer first, once there was a backward
            pass.
        probe: Enters every layer of the forward pass. A backward pass towards it passes all of
            them, and needs no other gradient than those that lead there.
    """

    def __init__(self) -> None:
        self.layers: list[LayerJacobian] = []
        self.probe = torch.zeros((), requires_grad=True)


def jacobian(losses: Float[Tensor, " K"], tape: Tape) -> Jacobian:
    """Differentiate each task's loss with respect to the tape's layers, in one backward pass.

    Args:
        losses: One loss per task; loss k may depend on the rows of task k only.
        tape: Of the forward pass that led to the losses.
    """
    tape.layers.clear()
    torch.autograd.grad(losses.sum(), tape.probe, allow_unused=True)
    return Jacobian(tape.layers[::-1])


def gramian(jacobian: Jacobian) -> Float[Tensor, "K K"]:
    """Return ``J @ J.T``, the inner products of the tasks' gradients: a sum over layers."""
    if dispatch.has_operators(jacobian[0].sums):
        return _gramian_in_one_call(jacobian)
    return _gramian_in_few_operations(jacobian)


def _gramian_in_one_call(jacobian: Jacobian) -> Float[Tensor, "K K"]:
    in_tiles = [layer for layer in jacobian if layer.blocks.in_tiles]
    others = [layer for layer in jacobian if not layer.blocks.in_tiles]
    parts = [amx.gramian(*_given(in_tiles))] if in_tiles else []
    if others:
        multiplied_out = [layer.blocks for layer in others if layer.blocks.multiplies_out()]
        rows, part = rows_and_gramian(
            [blocks.inputs for blocks in multiplied_out],
            [blocks.errors for blocks in multiplied_out],
            [layer.sums for layer in others],
            [layer.one_hot for layer in others],
        )
        for blocks, each in zip(multiplied_out, rows, strict=True):
            blocks.keep(each)
        factors = [layer.blocks for layer in others if layer.blocks not in multiplied_out]
        parts += [part, *(blocks.gramian_of_factors() for blocks in factors)]
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result


def _given(
    layers: Sequence[LayerJacobian],
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[bool]]:
    """Return inputs, errors and their sums of layers, and whether tasks have rows of their own."""
    return (
        [layer.blocks.inputs for layer in layers],
        [layer.blocks.errors for layer in layers],
        [layer.sums for layer in layers],
        [layer.one_hot for layer in layers],
    )


def _gramian_in_few_operations(jacobian: Jacobian) -> Float[Tensor, "K K"]:
    """Write all parts of J into one matrix: on a GPU, operations are what costs."""
    multiplied_out = [layer for layer in jacobian if layer.blocks.multiplies_out()]
    others = [layer for layer in jacobian if layer not in multiplied_out]
    parts = [part for layer in multiplied_out for part in layer.parts()]
    parts += [part for layer in others for part in layer.sums]
    K, length = len(parts[0]), sum(part.shape[1] for part in parts)
    J = torch.cat([*parts, parts[0].new_zeros(K, -length % COLUMNS)], dim=1)
    del parts  # for the rest of the way one J is enough
    strips = J.unflatten(1, (-1, COLUMNS)).transpose(0, 1)
    result = torch.bmm(strips, strips.mT).sum(dim=0)
    for layer in jacobian:
        if layer.one_hot:  # task k's gradient reaches its own row alone, and is the bias's
            result.diagonal().add_(layer.sums.square().sum(dim=(0, 2)))
    for layer in others:
        result = result + layer.blocks.gramian_of_factors()
    jacobian.together = multiplied_out, J
    return result


def combine(weights: Float[Tensor, " K"], jacobian: Jacobian) -> dict[Tensor, Tensor]:
    """Return ``weights @ J`` by parameter, in the parameters' own shapes."""
    combined: dict[Tensor, Tensor] = {}
    kept = [(layer, layer.blocks.kept) for layer in jacobian if layer.blocks.kept is not None]
    if jacobian.together is not None:
        layers, J = jacobian.together
        combined = _split(weights @ J, layers, weights)
    elif kept:
        sums = weighted_sums(
            weights,
            [rows for _, rows in kept],
            [layer.sums for layer, _ in kept],
            [layer.blocks.inputs.shape[-1] for layer, _ in kept],
            [layer.one_hot for layer, _ in kept],
        )
        parameters = [parameter for layer, _ in kept for parameter in (layer.weight, layer.bias)]
        combined = dict(zip(parameters, sums, strict=True))
    others = [layer for layer in jacobian if layer.weight not in combined]
    products: dict[Tensor, Tensor] = {}
    if in_tiles := [layer for layer in others if layer.blocks.in_tiles]:
        inputs, errors, *_ = _given(in_tiles)
        sums = amx.weighted_gradients(weights, inputs, errors)
        products = {layer.weight: each for layer, each in zip(in_tiles, sums, strict=True)}
    for layer in others:
        combined |= layer.combine(weights, products.get(layer.weight))
    return combined


def _split(
    gradient: Float[Tensor, " _"], layers: Sequence[LayerJacobian], weights: Float[Tensor, " K"]
) -> dict[Tensor, Tensor]:
    """Return a gradient, which begins with these layers' parts, by parameter."""
    result: dict[Tensor, Tensor] = {}
    for layer in layers:
        (E, _, D), I = layer.sums.shape, layer.blocks.inputs.shape[-1]  # noqa: E741
        rest = len(gradient) - E * (I + 1) * D
        of_weight, of_bias, gradient = gradient.split([E * I * D, E * D, rest])
        of_weight = of_weight.view(E, I, D)
        if layer.one_hot:
            of_weight = torch.cat([of_weight, weights[:, None] * layer.sums], dim=1)
        result |= {layer.weight: of_weight, layer.bias: of_bias.view(E, 1, D)}
    return result


def rows(jacobian: Jacobian) -> dict[Tensor, Float[Tensor, "K ..."]]:
    """Return the Jacobian written out, ``(K, *shape)`` by parameter: K times their memory."""
    return {key: value for layer in jacobian for key, value in layer.rows().items()}


class LayerJacobian:
    """The gradients of K tasks with respect to one layer's weight and bias.

    Args:
        weight: ``(E, J, D)``.
        bias: ``(E, 1, D)``.
        blocks: The weight's gradients, without the rows that stand for the one-hot.
        sums: The bias's gradients ``(E, K, D)``: the errors, summed over each task's rows.
        one_hot: Whether there are such rows.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, blocks: TaskBlocks, sums: Tensor, one_hot: bool
    ) -> None:
        self.weight, self.bias = weight, bias
        self.blocks, self.sums, self.one_hot = blocks, sums, one_hot

    def parts(self) -> list[Float[Tensor, "K _"]]:
        """Return the tasks' gradients a network and parameter at a time, but one-hots'."""
        return [*self.blocks.multiply_out(), *self.sums]

    def combine(
        self, weights: Float[Tensor, " K"], of_weight: Float[Tensor, "E I D"] | None = None
    ) -> dict[Tensor, Tensor]:
        """Return the weighted sums of the tasks' gradients, by parameter.

        Args:
            weights: One per task.
            of_weight: What `TaskBlocks.combine` returns, if it is at hand.
        """
        if of_weight is None:
            of_weight = self.blocks.combine(weights)
        weighted = weights[:, None] * self.sums
        if self.one_hot:
            of_weight = torch.cat([of_weight, weighted], dim=1)
        return {self.weight: of_weight, self.bias: weighted.sum(dim=1, keepdim=True)}

    def rows(self) -> dict[Tensor, Float[Tensor, "K ..."]]:
        """Return the tasks' gradients one by one, by parameter."""
        of_weight = self.blocks.rows().transpose(0, 1)
        sums = self.sums.transpose(0, 1)
        if self.one_hot:
            own = torch.diag_embed(sums.permute(1, 2, 0)).permute(2, 0, 3, 1)
            of_weight = torch.cat([of_weight, own], dim=2)
        return {self.weight: of_weight, self.bias: sums.unsqueeze(2)}
