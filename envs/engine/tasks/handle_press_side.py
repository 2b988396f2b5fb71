"""handle-press-side-v3: press the handle down sideways. Its official reward is handle-press's."""

from .handle_press import TASK

__all__ = ["TASK"]
