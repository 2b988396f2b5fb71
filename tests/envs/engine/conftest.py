from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from envs.benchmarks import resolve
from envs.engine import EngineVectorEnv
from envs.metaworld import OfficialVectorEnv
from envs.vector import MultiTaskVectorEnv, VectorOptions

TASKS = ("reach-v3", "pick-place-v3", "drawer-close-v3")


@pytest.fixture
def make_env() -> Iterator[Callable[..., Any]]:
    """Make engine or official environments, which are closed after the test."""
    made: list[MultiTaskVectorEnv] = []

    def make(
        benchmark: Any = TASKS,
        *,
        official: bool = False,
        envs_per_task: int = 1,
        steps: int = 500,
        seed: int = 0,
        goals: Any = "random",
        version: str = "v2",
        ends_with_success: bool = False,
        **kwargs: Any,
    ) -> MultiTaskVectorEnv:
        chosen = resolve(benchmark)
        options = VectorOptions(
            seed=seed,
            envs_per_task=envs_per_task,
            max_episode_steps=steps,
            goals=goals,
            one_hot=True,
            ends_with_success=ends_with_success,
        )
        kind = OfficialVectorEnv if official else EngineVectorEnv
        made.append(
            kind(
                chosen.task_names,
                options,
                reward_version=version,
                goal_seed=42,
                one_goal_stream=chosen.is_named,
                **kwargs,
            )
        )
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture
def act() -> Callable[..., np.ndarray]:
    """Draw actions, some of them at and beyond the bounds, the gripper mostly closing."""

    def draw(env: MultiTaskVectorEnv, generator: np.random.Generator) -> np.ndarray:
        actions = generator.uniform(-1.3, 1.3, env.action_space.shape)
        actions[generator.random(actions.shape) < 0.1] = 1.0
        actions[:, 3] = np.abs(actions[:, 3])
        return actions.astype(np.float32)

    return draw
