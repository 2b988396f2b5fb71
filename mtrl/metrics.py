"""Numbers that say how the tasks get along."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from . import dispatch
from .compiler import Compiler

PAIRS_OF = 64
"""Tasks all of whose pairs fit one of a GPU's programs."""

_kernel = Compiler("metrics", Path(__file__)).kernel


def is_finite(numbers: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Tell what is neither infinite nor NaN: `Tensor.isfinite`, in two operations for four."""
    return numbers.abs() < math.inf


def conflict_metrics(gramian: Float[Tensor, "K K"]) -> dict[str, Tensor]:
    """Summarise how far K per-task gradients disagree.

    Args:
        gramian: Their inner products.

    Returns:
        ``conflict_rate``, the share of task pairs whose gradients have a negative inner product;
        ``cosine_min``, the smallest cosine between two tasks' gradients (1 for a single task; a
        zero gradient has cosine 0 with all others); ``norm``, the gradients' norms ``(K,)``.
    """
    K = len(gramian)
    if dispatch.has_operators(gramian):
        return _name(_summary(gramian))
    if dispatch.has_triton(gramian) and K <= PAIRS_OF:
        from . import triton_kernels

        return _name(triton_kernels.summarise(gramian).to(gramian.dtype))
    norms = gramian.diagonal().clamp_min(0).sqrt()
    scale = torch.where(norms > 0, norms, 1.0)
    cosines = gramian / (scale[:, None] * scale[None, :])
    pairs = torch.ones(K, K, dtype=torch.bool, device=gramian.device).triu(diagonal=1)
    conflicts = ((cosines < 0) & pairs).sum() / max(1, K * (K - 1) // 2)
    minimum = torch.where(pairs, cosines, 1.0).min()
    return {"conflict_rate": conflicts, "cosine_min": minimum, "norm": norms}


def _name(summary: Float[Tensor, " _"]) -> dict[str, Tensor]:
    return {"conflict_rate": summary[0], "cosine_min": summary[1], "norm": summary[2:]}


def _room_for_summary(gramian: Float[Tensor, "K K"]) -> Float[Tensor, " K+2"]:
    return gramian.new_empty(2 + len(gramian))


@dispatch.operator("(Tensor gramian) -> Tensor", _room_for_summary)
def _summary(gramian: Float[Tensor, "K K"], summary: Float[Tensor, " K+2"]) -> Callable[[], object]:
    return functools.partial(_summarise, gramian.numpy(), summary.numpy())


@_kernel
def _summarise(gramian: NDArray[Any], summary: NDArray[Any]) -> None:
    """Write conflict rate, smallest cosine and norms: on a CPU, calls are what costs."""
    K = len(gramian)
    norms, conflicts, smallest = np.empty(K), 0, 1.0
    for k in range(K):
        square = gramian[k, k]
        norms[k] = np.sqrt(0.0 if square < 0 else square)  # NaN stays
    for i in range(K):
        for j in range(i + 1, K):
            length = norms[i] * norms[j]
            cosine = gramian[i, j] / (length if length > 0 else 1.0)
            conflicts += cosine < 0
            if cosine < smallest or np.isnan(cosine):  # and nothing is smaller than NaN
                smallest = cosine
    summary[0] = conflicts / max(1, K * (K - 1) // 2)
    summary[1] = smallest
    summary[2:] = norms
