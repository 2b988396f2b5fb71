"""One weighting after another."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ..state_tree import require_form
from ..types import State, Weighting


class Chain:
    """Lets the second weighting work on gradients that the first has scaled.

    With ``w`` the first one's weights, the second sees ``diag(w) G diag(w)`` and
    ``w * losses``, and the two weight vectors multiply. ``Chain(GradNorm(...), PCGrad(...))``
    removes conflicts between balanced gradients.

    Args:
        first: Scales the tasks; its weights should be positive.
        second: Works on the scaled tasks.
    """

    needs_gramian = True

    def __init__(self, first: Weighting, second: Weighting) -> None:
        self.first = first
        self.second = second

    def __call__(
        self, gramian: Float[Tensor, "K K"], losses: Float[Tensor, " K"]
    ) -> Float[Tensor, " K"]:
        """Return the product of both weight vectors. See `mtrl.types.Weighting`."""
        scale = self.first(gramian, losses)
        scaled = scale[:, None] * gramian * scale[None, :]
        return scale * self.second(scaled, scale * losses)

    def state_dict(self) -> State:
        """Return both states."""
        return {"first": self.first.state_dict(), "second": self.second.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Load both states.

        Raises:
            ValueError: An entry does not fit; nothing has changed.
        """
        require_form(state, self.state_dict())
        self.first.load_state_dict(state["first"])
        self.second.load_state_dict(state["second"])

    def reset(self) -> None:
        """Reset both."""
        self.first.reset()
        self.second.reset()
