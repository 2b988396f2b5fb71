"""Per-task gradients in one backward pass, their Gramian, and the combined gradient.

The idea: give every shared parameter a leading task axis by expanding it (stride 0, no copy), and
let task k read only slice k. The K losses then depend on disjoint slices, so the ordinary gradient
of their *sum* with respect to the expanded parameters is the Jacobian J, one row per task. It costs
one forward and one backward pass, whatever K is.

The forward pass need not know: all slices hold the same numbers, so `linear` multiplies once with
the plain weight, and only its backward pass keeps the tasks apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

Jacobian = dict[str, Tensor]
"""One entry per parameter, ``(K, *parameter.shape)``; flattened and joined, the (K, P) Jacobian."""


def expand_parameters(module: nn.Module, num_tasks: int) -> dict[str, Tensor]:
    """Return the module's parameters as leaves with a leading task axis.

    Args:
        module: Whose parameters all tasks share.
        num_tasks: K.

    Returns:
        Views ``(K, *shape)`` by parameter name, for `torch.func.functional_call`.
    """
    return {
        name: parameter.detach().expand(num_tasks, *parameter.shape).requires_grad_()
        for name, parameter in module.named_parameters()
    }


def jacobian(losses: Float[Tensor, " K"], parameters: Mapping[str, Tensor]) -> Jacobian:
    """Differentiate each task's loss with respect to the shared parameters, in one backward pass.

    Args:
        losses: One loss per task, computed with `parameters`.
        parameters: What `expand_parameters` returned.

    Returns:
        Gradients ``(K, *shape)`` by parameter name.
    """
    gradients = torch.autograd.grad(losses.sum(), list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))


def gramian(jacobian: Mapping[str, Tensor]) -> Float[Tensor, "K K"]:
    """Return ``J @ J.T``, the inner products of the tasks' gradients, ``(K, K)``.

    It is a sum over parameters, so the Jacobian is never joined into one matrix.
    """
    rows = [gradient.flatten(start_dim=1) for gradient in jacobian.values()]
    total = rows[0] @ rows[0].T
    for row in rows[1:]:
        total = torch.addmm(total, row, row.T)
    return total


def combine(weights: Float[Tensor, " K"], jacobian: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``weights @ J`` by parameter name, in the parameters' own shapes."""
    return {
        name: (weights @ gradient.flatten(start_dim=1)).view(gradient.shape[1:])
        for name, gradient in jacobian.items()
    }


def linear(
    inputs: Float[Tensor, "E K B I"],
    weight: Tensor,
    bias: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "E K B D"]:
    """Apply the affine maps of E networks to the batches of K tasks.

    Args:
        inputs: Activations, one set per network.
        weight: ``(E, I, D)``, or ``(K, E, I, D)`` from `expand_parameters`.
        bias: ``(E, 1, D)``, or ``(K, E, 1, D)`` from `expand_parameters`.
        dtype: What the matrix products are computed in; results are of the inputs' type again.

    Returns:
        ``inputs @ weight + bias``. With expanded parameters its backward pass yields one gradient
        per task.
    """
    if weight.ndim == 4:
        output: Tensor = _PerTaskLinear.apply(inputs, weight, bias, dtype)
        return output
    return _affine(inputs, weight, bias, dtype)


def _affine(inputs: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    E, K, B, _ = inputs.shape
    flat = inputs.flatten(1, 2).to(dtype)
    if dtype == inputs.dtype:
        return torch.baddbmm(bias, flat, weight).view(E, K, B, -1)
    return torch.bmm(flat, weight.to(dtype)).to(inputs.dtype).add(bias).view(E, K, B, -1)


class _PerTaskLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight[0])
        ctx.dtype = dtype
        return _affine(inputs, weight[0], bias[0], dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        inputs, weight = ctx.saved_tensors
        (grad,) = grads  # (E, K, B, D)
        low = grad.to(ctx.dtype)
        grad_inputs = None
        if ctx.needs_input_grad[0]:
            flat = torch.bmm(low.flatten(1, 2), weight.to(ctx.dtype).mT)
            grad_inputs = flat.view(inputs.shape).to(inputs.dtype)
        # (K, E, I, B) @ (K, E, B, D): task k's rows meet only task k's slice of the weight.
        by_task = inputs.to(ctx.dtype).transpose(0, 1).mT
        grad_weight = (by_task @ low.transpose(0, 1)).to(weight.dtype)
        grad_bias = grad.sum(dim=2, keepdim=True).transpose(0, 1)
        return grad_inputs, grad_weight, grad_bias, None
