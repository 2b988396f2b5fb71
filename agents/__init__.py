"""Multi-task agents built on the core in `mtrl`."""

from .sac import SAC, SACConfig

__all__ = ["SAC", "SACConfig"]
