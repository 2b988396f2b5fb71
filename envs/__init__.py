"""Multi-task environments: Meta-World's benchmarks, and toy tasks that need no simulator."""

from .benchmarks import space_sizes, task_names
from .factory import make_vec
from .registry import register_task
from .vector import MultiTaskVectorEnv

__all__ = ["MultiTaskVectorEnv", "make_vec", "register_task", "space_sizes", "task_names"]
