"""Tasks of your own beside those of the official package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtrl.errors import UserError

if TYPE_CHECKING:
    from .engine.scene import Task

_environments: dict[str, type[Any]] = {}
_kernels: dict[str, Task] = {}


def register_task(name: str, environment: type[Any], kernels: Task | None = None) -> None:
    """Make a task known by name to `make_vec`, in this process.

    Args:
        name: New; registering a name of one's own again replaces the task.
        environment: A class derived from the official `SawyerXYZEnv`.
        kernels: Its compiled reward; see `docs/engine.md`. Without it, the class's own
            `evaluate_state` runs on the engine's physics.

    Raises:
        UserError: if the name is none, or taken, or the others are not what they must be.
    """
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

    from .benchmarks import BENCHMARKS, MT50
    from .engine.scene import Task
    from .toy import TOY_TASKS

    if not name:
        raise UserError("`name` is empty: give the task one")
    if name in MT50 or name in TOY_TASKS:
        raise UserError(f"`name` is {name!r}, a task there is already: choose another")
    if name in BENCHMARKS:
        raise UserError(f"`name` is {name!r}, a benchmark's: choose another")
    if not (isinstance(environment, type) and issubclass(environment, SawyerXYZEnv)):
        raise UserError(
            f"`environment` is {environment!r}: give a class derived from one of the package's "
            "environments (SawyerXYZEnv)"
        )
    if kernels is not None and not isinstance(kernels, Task):
        raise UserError(f"`kernels` is {kernels!r}: give a Task, or leave it out")
    _environments[name] = environment
    _kernels.pop(name, None)
    if kernels is not None:
        _kernels[name] = kernels


def is_registered(name: str) -> bool:
    """Tell whether a task of that name was registered."""
    return name in _environments


def environment_class(name: str) -> type[Any]:
    """Find the class of a task, registered or official; loads the package."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    found: type[Any] = _environments.get(name) or ALL_V3_ENVIRONMENTS[name]
    return found


def registered_kernels(name: str) -> Task | None:
    """Return the kernels that a task was registered with, if any."""
    return _kernels.get(name)
