"""Which tasks a benchmark name stands for, resolved without loading a simulator."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from mtrl.errors import UserError

from .registry import is_registered
from .toy import TOY_TASKS

MT50 = (
    "assembly-v3",
    "basketball-v3",
    "bin-picking-v3",
    "box-close-v3",
    "button-press-topdown-v3",
    "button-press-topdown-wall-v3",
    "button-press-v3",
    "button-press-wall-v3",
    "coffee-button-v3",
    "coffee-pull-v3",
    "coffee-push-v3",
    "dial-turn-v3",
    "disassemble-v3",
    "door-close-v3",
    "door-lock-v3",
    "door-open-v3",
    "door-unlock-v3",
    "hand-insert-v3",
    "drawer-close-v3",
    "drawer-open-v3",
    "faucet-open-v3",
    "faucet-close-v3",
    "hammer-v3",
    "handle-press-side-v3",
    "handle-press-v3",
    "handle-pull-side-v3",
    "handle-pull-v3",
    "lever-pull-v3",
    "pick-place-wall-v3",
    "pick-out-of-hole-v3",
    "pick-place-v3",
    "plate-slide-v3",
    "plate-slide-side-v3",
    "plate-slide-back-v3",
    "plate-slide-back-side-v3",
    "peg-insert-side-v3",
    "peg-unplug-side-v3",
    "soccer-v3",
    "stick-push-v3",
    "stick-pull-v3",
    "push-v3",
    "push-wall-v3",
    "push-back-v3",
    "reach-v3",
    "reach-wall-v3",
    "shelf-place-v3",
    "sweep-into-v3",
    "sweep-v3",
    "window-open-v3",
    "window-close-v3",
)
MT10 = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)
MT25 = (
    *MT10,
    "coffee-pull-v3",
    "pick-out-of-hole-v3",
    "disassemble-v3",
    "pick-place-wall-v3",
    "basketball-v3",
    "stick-pull-v3",
    "button-press-wall-v3",
    "faucet-open-v3",
    "door-lock-v3",
    "lever-pull-v3",
    "sweep-into-v3",
    "faucet-close-v3",
    "coffee-button-v3",
    "button-press-topdown-wall-v3",
    "dial-turn-v3",
)
BENCHMARKS = {"MT10": MT10, "MT25": MT25, "MT50": MT50, "toy": TOY_TASKS}


@dataclass(frozen=True)
class Benchmark:
    """A resolved choice of tasks.

    Attributes:
        task_names: The K tasks, in the order of the one-hot.
        is_toy: Whether they are toy tasks; a benchmark never mixes them with Meta-World's.
        is_named: Whether the tasks were chosen by a benchmark's name (such as `MT10`) rather than
            one by one.
    """

    task_names: tuple[str, ...]
    is_toy: bool
    is_named: bool


def space_sizes(benchmark: str | Sequence[str]) -> tuple[int, int]:
    """Tell the sizes of a benchmark's observations, without the one-hot, and of its actions.

    Loads no simulator.

    Args:
        benchmark: As for `task_names`.

    Returns:
        O and A.

    Raises:
        UserError: as `task_names` does.
    """
    return (4, 2) if resolve(benchmark).is_toy else (39, 4)


def task_names(benchmark: str | Sequence[str]) -> tuple[str, ...]:
    """Name the K tasks of a benchmark, in the order of the one-hot; loads no simulator.

    Args:
        benchmark: `MT10`, `MT25`, `MT50`, `toy`, one task's name or a sequence of task names.

    Raises:
        UserError: for an unknown, repeated or missing name, or a mix of toy and Meta-World tasks.

    Example:
        >>> task_names("reach-v3")
        ('reach-v3',)
    """
    return resolve(benchmark).task_names


def resolve(benchmark: str | Sequence[str]) -> Benchmark:
    """Do what `task_names` does, and keep how the tasks were chosen."""
    names = (benchmark,) if isinstance(benchmark, str) else benchmark
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise UserError(f"`benchmark` is {benchmark!r}: give a name, or several in a list")
    names = tuple(names)
    if not names:
        raise UserError("`benchmark` is empty: name a benchmark or at least one task")
    if len(names) == 1 and names[0] in BENCHMARKS:
        return Benchmark(BENCHMARKS[names[0]], is_toy=names[0] == "toy", is_named=True)
    for name in names:
        _check_task(name, alone=len(names) == 1)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"`benchmark` names {_quoted(repeated)} more than once: name it once")
    toys = [name in TOY_TASKS for name in names]
    if any(toys) and not all(toys):
        raise UserError(
            f"`benchmark` mixes toy and Meta-World tasks in {_quoted(names)}: choose one kind"
        )
    return Benchmark(names, is_toy=all(toys), is_named=False)


def _check_task(name: str, *, alone: bool) -> None:
    if name in MT50 or name in TOY_TASKS or is_registered(name):
        return
    if name in BENCHMARKS:
        raise UserError(f"`benchmark` lists {name!r} beside others: a list may hold tasks only")
    choices = [*(BENCHMARKS if alone else ()), *MT50, *TOY_TASKS]
    spelling = {choice.lower(): choice for choice in choices}
    near = [spelling[match] for match in difflib.get_close_matches(name.lower(), spelling)]
    remedy = (
        f"did you mean {_quoted(near)}?"
        if near
        else f"choose {', '.join(BENCHMARKS)}, or tasks such as 'reach-v3'"
    )
    if "," in name:
        remedy = "give names apart, with spaces between them on a command line"
    raise UserError(
        f"`benchmark` {name!r} is not known: {remedy} (One of your own is, once the module that "
        "registers it is imported: --import.)"
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
