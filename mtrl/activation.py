"""What follows a matrix product in a layer, in one pass over memory each way.

Bias, layer norm and ReLU are a handful of operations a number. As torch's separate operations each
reads and writes all numbers once more, and on a CPU that is a quarter to a half of an update of
small networks. There a kernel takes a row through all of it while it is in the cache; elsewhere
torch's operations compute the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from . import bf16, dispatch
from .bf16 import numbers, read, rounded, wide_type
from .compiler import Compiler, use_widest_vectors
from .task_rows import summing_columns

LARGE = 500_000
"""Numbers of errors from which on their sums are worth a call of their own."""

EPSILON = 1e-5
"""Added to a row's variance, as `torch.nn.LayerNorm` does."""

Kept = tuple[Tensor, ...]
"""What the way back needs of the way there."""

_kernel = Compiler("layers", Path(__file__), Path(bf16.__file__)).vectorised_kernel


@dataclass(frozen=True)
class Activation:
    """Bias, then layer norm without parameters of its own, then ReLU.

    Attributes:
        norm: Whether there is a layer norm.
        relu: Whether there is a ReLU.
    """

    norm: bool = False
    relu: bool = False

    def forward(
        self,
        products: Float[Tensor, "E K B D"],
        bias: Float[Tensor, "E _ D"],
        *,
        keep: bool,
        dtype: torch.dtype | None = None,
    ) -> tuple[Float[Tensor, "E K B D"], Kept]:
        """Apply it; what is rounded to bf16 is only what enters and what comes out.

        Args:
            products: Contiguous; overwritten.
            bias: One for all tasks or one each; float32 where products are bf16.
            keep: Whether `backward` will be called.
            dtype: Of the result; by default that of `products`.

        Returns:
            The result, which may share memory with `products`, and what `backward` needs.
        """
        dtype = dtype or products.dtype
        if not _uses_kernels(products):
            return self._forward_torch(products, bias, keep, dtype)
        in_place = dtype == products.dtype and not (keep and self.norm)
        result = products if in_place else torch.empty_like(products, dtype=dtype)
        inverse = bias.new_empty(products.shape[:3])
        _forward(
            numbers(products),
            bias.numpy(),
            numbers(result),
            inverse.numpy(),
            _constants(bias),
            self.norm,
            self.relu,
        )
        # With a norm, `products` holds normalised rows now.
        return result, ((products if self.norm else result, inverse) if keep else ())

    def backward(
        self,
        gradient: Float[Tensor, "E K B D"],
        kept: Kept,
        dtype: torch.dtype | None = None,
    ) -> tuple[Float[Tensor, "E K B D"], Float[Tensor, "E K D"]]:
        """Return the gradients of `products`, and of the biases: their sums over each task's rows.

        Args:
            gradient: Of what `forward` returned.
            kept: What it returned beside it.
            dtype: Of the products' gradients; by default that of `gradient`. Sums are at least
                float32.
        """
        dtype = dtype or gradient.dtype
        if not _uses_kernels(gradient):
            return self._backward_torch(gradient, kept, dtype)
        gradient = gradient.contiguous()
        if not (self.norm or self.relu) and dtype == gradient.dtype:
            return gradient, gradient.sum(dim=2, dtype=wide_type(dtype))
        E, K, _, D = gradient.shape
        errors = gradient.new_empty(gradient.shape, dtype=dtype)
        sums = gradient.new_empty(E, K, D, dtype=wide_type(gradient.dtype))
        reference, inverse = kept
        _backward(
            numbers(gradient),
            numbers(reference),
            inverse.numpy(),
            numbers(errors),
            sums.numpy(),
            _constants(sums),
            self.norm,
            self.relu,
        )
        return errors, sums

    def _forward_torch(
        self, products: Tensor, bias: Tensor, keep: bool, dtype: torch.dtype
    ) -> tuple[Tensor, Kept]:
        added = products.to(bias.dtype).add_(bias.unsqueeze(2))
        kept: Kept = ()
        result = added
        if self.norm:
            result, *kept_of_norm = torch.native_layer_norm(
                added, [added.shape[-1]], None, None, EPSILON
            )
            kept = (added, *kept_of_norm)
        if self.relu:
            result = result.relu().to(dtype)
            kept = (result, *kept)
        return result.to(dtype), (kept if keep else ())

    def _backward_torch(
        self, gradient: Tensor, kept: Kept, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        given = gradient.dtype
        if self.relu:
            result, *kept_of_norm = kept
            gradient = torch.ops.aten.threshold_backward(gradient, result.to(gradient.dtype), 0)
        else:
            kept_of_norm = list(kept)
        gradient = gradient.to(wide_type(gradient.dtype))
        if self.norm:
            added, mean, inverse = kept_of_norm
            size = [added.shape[-1]]
            gradient, _, _ = torch.ops.aten.native_layer_norm_backward(
                gradient, added, size, mean, inverse, None, None, [True, False, False]
            )
        errors = gradient.to(dtype)
        is_exact = dtype == gradient.dtype or (not self.norm and dtype == given)
        if is_exact and dispatch.has_operators(errors) and errors.numel() >= LARGE:
            return errors, _sum_up(errors)
        return errors, gradient.sum(dim=2)


def _room_for_sums(errors: Float[Tensor, "E K B D"]) -> Float[Tensor, "E K D"]:
    E, K, _, D = errors.shape
    return errors.new_empty(E, K, D, dtype=wide_type(errors.dtype))


@dispatch.operator("(Tensor errors) -> Tensor", _room_for_sums)
def _sum_up(errors: Float[Tensor, "E K B D"], sums: Float[Tensor, "E K D"]) -> Callable[[], object]:
    """Write the sums over each task's rows, row by row as they lie: a compiler goes by columns."""
    ones = errors.new_ones(*errors.shape[:3], 1, dtype=sums.dtype)
    calls = dispatch.InTurn()
    calls.append(summing_columns(calls.contiguous(errors), ones, sums))
    return calls


def _uses_kernels(tensor: Tensor) -> bool:
    types = (torch.bfloat16, torch.float32, torch.float64)
    return dispatch.on_cpu(tensor) and tensor.dtype in types


def _constants(tensor: Tensor) -> NDArray[Any]:
    """Numbers for the kernels, in the type they compute in, lest they compute in a wider one."""
    return _constants_of(tensor.dtype == torch.float32, tensor.shape[-1])


@functools.cache
def _constants_of(single: bool, width: int) -> NDArray[Any]:
    return np.array([0.0, 1.0, 1 / width, EPSILON], np.float32 if single else np.float64)


@_kernel
def _forward(
    products: NDArray[Any],
    bias: NDArray[Any],
    result: NDArray[Any],
    inverse: NDArray[Any],
    constants: NDArray[Any],
    norm: bool,
    relu: bool,
) -> None:
    """Leave normalised rows in `products` and 1 / their deviation in `inverse`; write `result`.

    That may be `products`, over which it is written then. No loop vectorises that reads and writes
    what may be the same array, so each row goes through one of its own. Loops that add up write
    nothing: what they do must not depend on how close to each other two arrays happen to lie.
    """
    use_widest_vectors()
    E, K, B, D = products.shape
    zero, one, share, epsilon = constants
    values = np.empty(D, constants.dtype)
    for e in range(E):
        for k in range(K):
            added = bias[e, k % bias.shape[1]]
            for b in range(B):
                row, out = products[e, k, b], result[e, k, b]
                for d in range(D):
                    values[d] = read(row[d]) + added[d]
                if norm:
                    total = zero
                    for d in range(D):
                        total += values[d]
                    mean = total * share
                    squares = zero
                    for d in range(D):
                        value = values[d] - mean
                        squares += value * value
                    scale = one / np.sqrt(squares * share + epsilon)
                    inverse[e, k, b] = scale
                    for d in range(D):
                        values[d] = (values[d] - mean) * scale
                        row[d] = rounded(values[d], row)
                for d in range(D):
                    value = values[d]
                    out[d] = rounded(zero if relu and value < zero else value, out)  # NaN stays


@_kernel
def _backward(
    gradient: NDArray[Any],
    reference: NDArray[Any],
    inverse: NDArray[Any],
    errors: NDArray[Any],
    sums: NDArray[Any],
    constants: NDArray[Any],
    norm: bool,
    relu: bool,
) -> None:
    """Write `errors` and `sums`; `reference` holds normalised rows or, without norm, the result."""
    use_widest_vectors()
    E, K, B, D = gradient.shape
    zero, _, share, _ = constants
    for e in range(E):
        for k in range(K):
            added = sums[e, k]
            for d in range(D):
                added[d] = zero
            for b in range(B):
                row, given, out = reference[e, k, b], gradient[e, k, b], errors[e, k, b]
                if norm:
                    total, along = zero, zero
                    for d in range(D):
                        value = zero if relu and read(row[d]) <= zero else read(given[d])
                        total += value
                        along += value * read(row[d])
                    total, along = total * share, along * share
                    scale = inverse[e, k, b]
                    for d in range(D):
                        value = zero if relu and read(row[d]) <= zero else read(given[d])
                        value = scale * (value - total - read(row[d]) * along)
                        out[d] = rounded(value, out)
                        added[d] += value
                elif relu:
                    for d in range(D):
                        value = zero if read(row[d]) <= zero else read(given[d])
                        out[d] = rounded(value, out)
                        added[d] += value
                else:
                    for d in range(D):
                        value = read(given[d])
                        out[d] = rounded(value, out)
                        added[d] += value
