"""plate-slide-back-v3: slide the plate out of the cabinet.

Its official reward is plate-slide-side's.
"""

from .plate_slide_side import TASK

__all__ = ["TASK"]
