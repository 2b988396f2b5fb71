"""The tasks whose rewards are compiled, one module each; see `docs/engine.md` to add one."""

import importlib
import importlib.util

from ...registry import is_registered, registered_kernels
from ..scene import Task


def find_task(name: str) -> Task | None:
    """Find the kernels of a task such as `reach-v3`, or None where there are none."""
    if is_registered(name):
        return registered_kernels(name)
    module = f"{__name__}.{name.removesuffix('-v3').replace('-', '_')}"
    if importlib.util.find_spec(module) is None:
        return None
    task = importlib.import_module(module).TASK
    assert isinstance(task, Task)
    return task
