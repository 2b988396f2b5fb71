"""coffee-push-v3: push the mug to the goal. Its official reward is coffee-pull's, word for word."""

from .coffee_pull import TASK

__all__ = ["TASK"]
