"""Multi-task agents built on the core in `mtrl`."""

from .config import SACConfig
from .sac import SAC

__all__ = ["SAC", "SACConfig"]
