"""Numbers that say how the tasks get along."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


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
    norms = gramian.diagonal().clamp_min(0).sqrt()
    scale = torch.where(norms > 0, norms, 1.0)
    cosines = gramian / (scale[:, None] * scale[None, :])
    pairs = torch.ones(K, K, dtype=torch.bool, device=gramian.device).triu(diagonal=1)
    conflicts = ((cosines < 0) & pairs).sum() / max(1, K * (K - 1) // 2)
    minimum = torch.where(pairs, cosines, 1.0).min()
    return {"conflict_rate": conflicts, "cosine_min": minimum, "norm": norms}
