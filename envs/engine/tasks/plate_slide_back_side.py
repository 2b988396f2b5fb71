"""plate-slide-back-side-v3: slide the plate sideways out of the cabinet.

Its official reward is plate-slide-side's.
"""

from .plate_slide_side import TASK

__all__ = ["TASK"]
