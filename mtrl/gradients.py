"""Per-task gradients in one backward pass, their Gramian, and the combined gradient.

The idea: an affine layer's gradient is a product of what went into it and what came back to it,
``inputs.T @ errors``, and the rows of both that belong to task k yield the gradient of task k. So a
backward pass down to the layers' outputs is all that is needed, whatever K is; a `Tape` keeps what
the products need. How they are multiplied out is decided by their shapes, see `LayerJacobian`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from .blocks import TaskBlocks

Jacobian = list["LayerJacobian"]
"""The gradients of K tasks with respect to all layers of a tape: the (K, P) Jacobian in parts."""


@dataclass(frozen=True)
class _Call:
    """One application of affine maps: the parameters, what entered and what left."""

    weight: Tensor
    bias: Tensor
    inputs: Tensor
    outputs: Tensor
    one_hot: bool


@dataclass(frozen=True)
class Tape:
    """Remembers the affine layers of one forward pass; see `linear` and `jacobian`."""

    calls: list[_Call] = field(default_factory=list)


def linear(
    inputs: Float[Tensor, "E K B I"],
    weight: Float[Tensor, "E J D"],
    bias: Float[Tensor, "E 1 D"],
    *,
    tape: Tape | None = None,
    dtype: torch.dtype = torch.float32,
    one_hot: bool = False,
) -> Float[Tensor, "E K B D"]:
    """Apply the affine maps of E networks to the batches of K tasks.

    Args:
        inputs: Activations, one set per network.
        weight: ``J = I``, or ``J = I + K`` with `one_hot`.
        bias: Added to every row.
        tape: Where to remember this call, to differentiate with respect to the parameters later.
        dtype: What the matrix products are computed in; results are of the inputs' type again.
        one_hot: Act as if the inputs went on with the one-hot of their task. As its product with
            the weight is one row of the weight, that row is added and nothing multiplied.

    Returns:
        ``inputs @ weight + bias``.
    """
    E, K, B, I = inputs.shape  # noqa: E741
    low = inputs.flatten(1, 2).to(dtype)
    if one_hot:
        added = (bias + weight[:, I:]).unsqueeze(2).expand(E, K, B, -1).flatten(1, 2)
        weight_of_inputs = weight[:, :I]
    else:
        added, weight_of_inputs = bias, weight
    if weight.shape[-1] == 1:  # a product with one column is many times slower than this
        columns = weight_of_inputs.to(dtype).mT
        flat = (low * columns).sum(dim=-1, keepdim=True, dtype=inputs.dtype) + added
    elif dtype == inputs.dtype:
        flat = torch.baddbmm(added, low, weight_of_inputs)
    else:
        flat = torch.bmm(low, weight_of_inputs.to(dtype)).to(inputs.dtype).add(added)
    outputs = flat.view(E, K, B, -1)
    if tape is not None:
        call = _Call(weight, bias, low.detach().view(E, K, B, I), outputs, one_hot)
        tape.calls.append(call)
    return outputs


def jacobian(losses: Float[Tensor, " K"], tape: Tape) -> Jacobian:
    """Differentiate each task's loss with respect to the tape's layers, in one backward pass.

    Args:
        losses: One loss per task; loss k may depend on the rows of task k only.
        tape: Of the forward pass that led to the losses.
    """
    errors = torch.autograd.grad(losses.sum(), [call.outputs for call in tape.calls])
    return [
        LayerJacobian(call.weight, call.bias, TaskBlocks(call.inputs, error), call.one_hot)
        for call, error in zip(tape.calls, errors, strict=True)
    ]


def gramian(jacobian: Jacobian) -> Float[Tensor, "K K"]:
    """Return ``J @ J.T``, the inner products of the tasks' gradients: a sum over layers."""
    return torch.stack([layer.gramian() for layer in jacobian]).sum(dim=0)


def combine(weights: Float[Tensor, " K"], jacobian: Jacobian) -> dict[Tensor, Tensor]:
    """Return ``weights @ J`` by parameter, in the parameters' own shapes."""
    return {key: value for layer in jacobian for key, value in layer.combine(weights).items()}


def rows(jacobian: Jacobian) -> dict[Tensor, Float[Tensor, "K ..."]]:
    """Return the Jacobian written out, ``(K, *shape)`` by parameter: K times their memory."""
    return {key: value for layer in jacobian for key, value in layer.rows().items()}


class LayerJacobian:
    """The gradients of K tasks with respect to one layer's weight and bias.

    Args:
        weight: ``(E, J, D)``.
        bias: ``(E, 1, D)``.
        blocks: The weight's gradients, without the rows that stand for the one-hot.
        one_hot: Whether there are such rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor, blocks: TaskBlocks, one_hot: bool) -> None:
        self._weight, self._bias, self._blocks, self._one_hot = weight, bias, blocks, one_hot
        self._sums = blocks.errors.sum(dim=2)  # (E, K, D): the bias's gradients

    def gramian(self) -> Float[Tensor, "K K"]:
        """Return the inner products of the tasks' gradients."""
        of_bias = torch.bmm(self._sums, self._sums.mT).sum(dim=0)
        if self._one_hot:  # task k's gradient reaches its own row alone, and is the bias's
            of_bias = of_bias + of_bias.diagonal().diag()
        return self._blocks.gramian().add_(of_bias)

    def combine(self, weights: Float[Tensor, " K"]) -> dict[Tensor, Tensor]:
        """Return the weighted sums of the tasks' gradients, by parameter."""
        of_weight = self._blocks.combine(weights)
        weighted = weights[:, None] * self._sums
        if self._one_hot:
            of_weight = torch.cat([of_weight, weighted], dim=1)
        return {self._weight: of_weight, self._bias: weighted.sum(dim=1, keepdim=True)}

    def rows(self) -> dict[Tensor, Float[Tensor, "K ..."]]:
        """Return the tasks' gradients one by one, by parameter."""
        of_weight = self._blocks.rows().transpose(0, 1)
        sums = self._sums.transpose(0, 1)
        if self._one_hot:
            own = torch.diag_embed(sums.permute(1, 2, 0)).permute(2, 0, 3, 1)
            of_weight = torch.cat([of_weight, own], dim=2)
        return {self._weight: of_weight, self._bias: sums.unsqueeze(2)}
