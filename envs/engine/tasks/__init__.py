"""The tasks whose rewards are compiled, one module each; see `docs/engine.md` to add one."""

import importlib
import importlib.util

from ..scene import Task


def find_task(name: str) -> Task | None:
    """Load the kernels of a Meta-World task such as `reach-v3`, or None where there are none."""
    module = f"{__name__}.{name.removesuffix('-v3').replace('-', '_')}"
    if importlib.util.find_spec(module) is None:
        return None
    task = importlib.import_module(module).TASK
    assert isinstance(task, Task)
    return task
