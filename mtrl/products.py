"""Matrix products of E networks at once."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from . import dispatch
from .device import has_bf16

THIN = 16
"""With so few columns a product is several times faster the other way round, rows with columns."""


def multiply(left: Float[Tensor, "E R I"], right: Float[Tensor, "E I D"]) -> Float[Tensor, "E R D"]:
    """Return ``left @ right``, on a CPU several times faster than `torch.bmm` for a thin side.

    A CPU that cannot multiply bf16 multiplies the same numbers as fp32, which is exact, adds them
    up as such, as one that can does too, and rounds what comes out: fifty times faster than torch.
    """
    if left.dtype == torch.bfloat16 and not has_bf16(left.device):
        return multiply(left.float(), right.float()).to(torch.bfloat16)
    if not dispatch.has_operators(left):
        return torch.bmm(left, right)
    if left.shape[-1] == 1:
        return left * right
    if right.shape[-1] == 1:
        columns = [a @ b for a, b in zip(left, right.squeeze(-1), strict=True)]
        return torch.stack(columns).unsqueeze(-1)
    if right.shape[-1] <= THIN < left.shape[-2]:
        return torch.bmm(right.mT, left.mT).mT.contiguous()
    return torch.bmm(left, right)
