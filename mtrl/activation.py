"""What follows a matrix product in a layer, in one pass over memory each way.

Bias, layer norm and ReLU are a handful of operations a number. As torch's separate operations each
reads and writes all numbers once more, and on a CPU that is a quarter to a half of an update of
small networks. There a kernel takes a row through all of it while it is in the cache; elsewhere
torch's operations compute the same.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from . import dispatch
from .compiler import Compiler, use_widest_vectors

EPSILON = 1e-5
"""Added to a row's variance, as `torch.nn.LayerNorm` does."""

Kept = tuple[Tensor, ...]
"""What the way back needs of the way there."""

_kernel = Compiler("layers", Path(__file__)).vectorised_kernel


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
        self, products: Float[Tensor, "E K B D"], bias: Float[Tensor, "E _ D"], *, keep: bool
    ) -> tuple[Float[Tensor, "E K B D"], Kept]:
        """Apply it.

        Args:
            products: Contiguous; overwritten.
            bias: One for all tasks or one each.
            keep: Whether `backward` will be called.

        Returns:
            The result, which may share memory with `products`, and what `backward` needs.
        """
        if not _uses_kernels(products):
            return self._forward_torch(products, bias, keep)
        result = torch.empty_like(products) if keep and self.norm else products
        inverse = products.new_empty(products.shape[:3])
        _forward(
            products.numpy(),
            bias.numpy(),
            result.numpy(),
            inverse.numpy(),
            _constants(products),
            self.norm,
            self.relu,
            result is products,
        )
        # With a norm, `products` holds normalised rows now; without one, the result.
        return result, ((products, inverse) if keep else ())

    def backward(
        self, gradient: Float[Tensor, "E K B D"], kept: Kept
    ) -> tuple[Float[Tensor, "E K B D"], Float[Tensor, "E K D"]]:
        """Return the gradients of `products`, and of the biases: their sums over each task's rows.

        Args:
            gradient: Of what `forward` returned.
            kept: What it returned beside it.
        """
        if not _uses_kernels(gradient):
            return self._backward_torch(gradient, kept)
        gradient = gradient.contiguous()
        E, K, _, D = gradient.shape
        errors = torch.empty_like(gradient) if self.norm or self.relu else gradient
        sums = gradient.new_empty(E, K, D)
        reference, inverse = kept
        _backward(
            gradient.numpy(),
            reference.numpy(),
            inverse.numpy(),
            errors.numpy(),
            sums.numpy(),
            _constants(gradient),
            self.norm,
            self.relu,
        )
        return errors, sums

    def _forward_torch(self, products: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Kept]:
        added = products.add_(bias.unsqueeze(2))
        kept: Kept = ()
        result = added
        if self.norm:
            result, *kept_of_norm = torch.native_layer_norm(
                added, [added.shape[-1]], None, None, EPSILON
            )
            kept = (added, *kept_of_norm)
        if self.relu:
            result = result.relu()
            kept = (result, *kept)
        return result, (kept if keep else ())

    def _backward_torch(self, gradient: Tensor, kept: Kept) -> tuple[Tensor, Tensor]:
        if self.relu:
            result, *kept_of_norm = kept
            gradient = torch.ops.aten.threshold_backward(gradient, result, 0)
        else:
            kept_of_norm = list(kept)
        if self.norm:
            added, mean, inverse = kept_of_norm
            size = [added.shape[-1]]
            gradient, _, _ = torch.ops.aten.native_layer_norm_backward(
                gradient, added, size, mean, inverse, None, None, [True, False, False]
            )
        return gradient, gradient.sum(dim=2)


def _uses_kernels(tensor: Tensor) -> bool:
    return dispatch.on_cpu(tensor) and tensor.dtype in (torch.float32, torch.float64)


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
    in_place: bool,
) -> None:
    """Write `result`; leave the normalised rows in `products`, 1 / their deviation in `inverse`."""
    use_widest_vectors()
    E, K, B, D = products.shape
    zero, one, share, epsilon = constants
    for e in range(E):
        for k in range(K):
            added = bias[e, k % bias.shape[1]]
            for b in range(B):
                row, out = products[e, k, b], result[e, k, b]
                if not norm:
                    for d in range(D):
                        value = row[d] + added[d]
                        row[d] = zero if relu and value < zero else value  # NaN stays
                    continue
                total = zero
                for d in range(D):
                    value = row[d] + added[d]
                    row[d] = value
                    total += value
                mean = total * share
                squares = zero
                for d in range(D):
                    value = row[d] - mean
                    squares += value * value
                scale = one / np.sqrt(squares * share + epsilon)
                inverse[e, k, b] = scale
                # Two loops, as none vectorises in which `row` and `out` may be the same array.
                if in_place:
                    for d in range(D):
                        value = (row[d] - mean) * scale
                        row[d] = zero if relu and value < zero else value
                else:
                    for d in range(D):
                        value = (row[d] - mean) * scale
                        row[d] = value
                        out[d] = zero if relu and value < zero else value


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
                        value = zero if relu and row[d] <= zero else given[d]
                        total += value
                        along += value * row[d]
                    total, along = total * share, along * share
                    scale = inverse[e, k, b]
                    for d in range(D):
                        value = zero if relu and row[d] <= zero else given[d]
                        value = scale * (value - total - row[d] * along)
                        out[d] = value
                        added[d] += value
                elif relu:
                    for d in range(D):
                        value = zero if row[d] <= zero else given[d]
                        out[d] = value
                        added[d] += value
                else:
                    for d in range(D):
                        added[d] += given[d]
