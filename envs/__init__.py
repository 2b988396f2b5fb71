"""Multi-task environments: Meta-World's benchmarks, and toy tasks that need no simulator."""

from .benchmarks import task_names
from .factory import make_vec
from .vector import MultiTaskVectorEnv

__all__ = ["MultiTaskVectorEnv", "make_vec", "task_names"]
