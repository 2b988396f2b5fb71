"""One constructor for every environment."""

import logging
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from mtrl.errors import UserError

from .benchmarks import Benchmark, resolve
from .errors import EngineUnfitError
from .goals import GOAL_ORDERS
from .toy import EPISODE_STEPS, ToyVectorEnv
from .vector import MultiTaskVectorEnv, VectorOptions

_logger = logging.getLogger("mtrl")

ENGINES = ("fast", "official")
REWARD_VERSIONS = ("v1", "v2")
METAWORLD_STEPS = 500


def make_vec(
    benchmark: str | Sequence[str],
    *,
    seed: int,
    envs_per_task: int = 1,
    reward_version: str = "v2",
    max_episode_steps: int | None = None,
    goals: str = "random",
    goal_seed: int = 42,
    ends_with_success: bool = False,
    one_hot: bool = True,
    engine: str = "fast",
    num_threads: int | None = None,
    render_mode: str | None = None,
    camera: str | int = "corner2",
    render_size: tuple[int, int] = (480, 480),
) -> MultiTaskVectorEnv:
    """Make N environments of each task of a benchmark.

    Args:
        benchmark: `MT10`, `MT25`, `MT50`, `toy`, one task's name or a sequence of task names.
        seed: Decides which goals are played in which order.
        envs_per_task: N.
        reward_version: Meta-World's reward functions, `v1` or `v2`.
        max_episode_steps: Length of an episode, at most 500 in Meta-World. Default: the
            benchmark's own (Meta-World 500, toy 25).
        goals: `random` draws one of the task's 50 goals for each episode; `sequential` plays them
            in order from each `reset()` on, once each in 50/N episodes; `once` plays each of them
            once, and then rests until the next `reset()` (for evaluation);
            `official` draws as the package's own vector environments do with this seed.
        goal_seed: Decides which 50 goals a task has. Environments for training and for evaluation
            must agree on it; it is fixed by default so that runs with different seeds do too.
        ends_with_success: Whether an episode ends, with `terminated`, in the step that succeeds.
        one_hot: Whether the task's one-hot (K,) is appended to the observations.
        engine: What simulates Meta-World: `fast` (compiled, bit-equal to the official one; see
            `docs/engine.md`) or `official` (the package's own classes). Toy tasks ignore it.
        num_threads: Threads of the fast engine; as many as there are cores by default.
        render_mode: `rgb_array` for environments whose `render()` draws them. Not for toy tasks.
        camera: What `render()` looks through unless it is told otherwise.
        render_size: Height and width of a picture in pixels.

    Returns:
        K*N environments behind one `gymnasium.vector.VectorEnv`.

    Raises:
        UserError: for a value that is not among the choices above, before anything is loaded.

    Example:
        >>> envs = make_vec("toy", seed=0, envs_per_task=2)
        >>> observations, _ = envs.reset()
        >>> observations.shape  # 4 tasks x 2 environments, 4 numbers + one-hot of 4
        (8, 8)
    """
    chosen = resolve(benchmark)
    _check_choice("goals", goals, GOAL_ORDERS)
    _check_choice("reward_version", reward_version, REWARD_VERSIONS)
    _check_choice("engine", engine, ENGINES)
    _check_at_least("seed", seed, 0)
    _check_at_least("goal_seed", goal_seed, 0)
    _check_at_least("envs_per_task", envs_per_task, 1)
    if num_threads is not None:
        _check_at_least("num_threads", num_threads, 1)
    _check_rendering(chosen, render_mode, render_size)
    options = VectorOptions(
        seed=seed,
        envs_per_task=envs_per_task,
        max_episode_steps=_episode_steps(chosen, max_episode_steps),
        goals=goals,
        one_hot=one_hot,
        ends_with_success=ends_with_success,
        render_mode=render_mode,
        camera=camera,
        render_size=render_size,
    )
    if chosen.is_toy:
        return ToyVectorEnv(chosen.task_names, options, goal_seed=goal_seed)
    arguments: dict[str, Any] = {
        "reward_version": reward_version,
        "goal_seed": goal_seed,
        "one_goal_stream": chosen.is_named,
    }
    # Importing either takes a second or more, which toy tasks need not pay.
    if engine == "fast":
        try:
            from .engine import EngineVectorEnv

            return EngineVectorEnv(chosen.task_names, options, num_threads=num_threads, **arguments)
        except EngineUnfitError as error:
            _logger.warning("the fast engine cannot be used (%s): using the official one", error)
    from .metaworld import OfficialVectorEnv

    return OfficialVectorEnv(chosen.task_names, options, **arguments)


def _episode_steps(chosen: Benchmark, asked: int | None) -> int:
    own = EPISODE_STEPS if chosen.is_toy else METAWORLD_STEPS
    if asked is None:
        return own
    _check_at_least("max_episode_steps", asked, 1)
    if not chosen.is_toy and asked > METAWORLD_STEPS:
        raise UserError(
            f"`max_episode_steps` is {asked}: Meta-World episodes end at {METAWORLD_STEPS}, "
            "choose at most that"
        )
    return asked


def _check_rendering(
    chosen: Benchmark, render_mode: str | None, render_size: tuple[int, int]
) -> None:
    if render_mode is None:
        return
    _check_choice("render_mode", render_mode, ("rgb_array",))
    if chosen.is_toy:
        raise UserError("`render_mode` is 'rgb_array': toy tasks have no picture, leave it out")
    for pixels in render_size:
        _check_at_least("render_size", pixels, 1)


def _check_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"`{argument}` is {value!r}: choose {' or '.join(choices)}")


def _check_at_least(argument: str, value: Any, least: int) -> None:
    if not isinstance(value, Integral):
        raise UserError(f"`{argument}` is {value!r}: choose a whole number")
    if value < least:
        raise UserError(f"`{argument}` is {value}: choose {least} or more")
