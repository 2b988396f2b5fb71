"""Every task counts the same."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..types import State


class Uniform:
    """Weights ``1 / K``: the update follows the gradient of the mean loss."""

    needs_gramian = False

    def __call__(
        self, gramian: Float[Tensor, "K K"] | None, losses: Float[Tensor, " K"]
    ) -> Float[Tensor, " K"]:
        """Return ``1 / K`` for each task. See `mtrl.types.Weighting`."""
        del gramian
        return torch.full_like(losses, 1.0 / len(losses))

    def state_dict(self) -> State:
        """Return an empty state: there is nothing to keep."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Accept an empty state."""
        del state

    def reset(self) -> None:
        """Do nothing: there is nothing to forget."""
