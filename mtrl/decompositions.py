"""What a compiler of updates is shown in place of what it would do slowly, or wrongly."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import dispatch


@dispatch.operator(
    "(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] first_moments, "
    "Tensor(c!)[] second_moments, Tensor[] steps, float lr, Tensor? tensor_lr, float beta1, "
    "float beta2, float eps, Tensor? found_inf) -> ()",
    # Else it may copy a parameter to itself, for the stride of a dimension of one, and fail.
    tags=[torch.Tag.flexible_layout],
)
def _adam(
    parameters: list[Tensor],
    gradients: list[Tensor],
    first_moments: list[Tensor],
    second_moments: list[Tensor],
    steps: list[Tensor],
    lr: float,
    tensor_lr: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    found_inf: Tensor | None,
) -> Callable[[], object]:
    """Call torch's kernel, which is ten times as fast as what the compiler would make of it."""
    kept = [*parameters, *first_moments, *second_moments]
    if not all(tensor.is_contiguous() for tensor in kept):
        raise ValueError("parameters and moments must each lie in one piece")
    calls = dispatch.InTurn()
    given = [calls.contiguous(gradient) for gradient in gradients]
    step = functools.partial(
        torch._fused_adam_,
        parameters,
        given,
        first_moments,
        second_moments,
        [],
        steps,
        lr=lr if tensor_lr is None else tensor_lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
        found_inf=found_inf,
    )
    calls.append(step)
    return calls


def _fused_adam(
    *lists: list[Tensor],
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    amsgrad: bool,
    maximize: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    assert (weight_decay, amsgrad, maximize) == (0, False, False)  # not in use
    parameters, gradients, first_moments, second_moments, _, steps = lists
    rates = (0.0, lr) if isinstance(lr, Tensor) else (lr, None)
    moments = first_moments, second_moments
    if grad_scale is not None:
        gradients = [gradient / grad_scale for gradient in gradients]
    _adam(parameters, gradients, *moments, steps, *rates, beta1, beta2, eps, found_inf)


def _each(operation: Callable[..., Any]) -> Callable[..., None]:
    """Take an operation on lists of tensors apart.

    For a GPU the compiler makes one kernel of such a list, and may let one of its programs find
    what the others read (torch 2.13).
    """

    def apart(tensors: Sequence[Tensor], other: Any, *more: Any, **options: Any) -> None:
        others = other if isinstance(other, Sequence) else [other] * len(tensors)
        for tensor, each in zip(tensors, others, strict=True):
            operation(tensor, each, *more, **options)

    return apart


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten._fused_adam_.default: _fused_adam,
    torch.ops.aten._fused_adam_.tensor_lr: _fused_adam,
    torch.ops.aten._foreach_add_.Scalar: _each(Tensor.add_),
    torch.ops.aten._foreach_lerp_.Scalar: _each(Tensor.lerp_),
    torch.ops.aten._foreach_sub_.List: _each(Tensor.sub_),
}
"""What a compiler of updates sees in their place, by operation."""
