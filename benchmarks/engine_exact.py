"""Compare the engine with the official environments, number by number.

Every task plays full episodes under three kinds of actions: random ones; the official scripted
policy with noise, which reaches, grasps and places; and random ones at and beyond the bounds.
Prints a row a task: how many observations and rewards differ, and by how much at most.

    python benchmarks/engine_exact.py --benchmark MT50 --goals 20
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from metaworld.policies import ENV_POLICY_MAP
from numpy.typing import NDArray
from scripted import wanted_actions

import envs

NOISE = 0.3
ACTIONS = ("random", "scripted", "beyond")


@dataclass
class Differences:
    """What was compared for one task and what was not equal."""

    steps: int = 0
    observations: int = 0
    rewards: int = 0
    infos: int = 0
    truncations: int = 0
    largest: float = 0.0
    successes: int = 0
    compiled: bool = True

    @property
    def exact(self) -> bool:
        """Whether nothing differs."""
        return not (self.observations or self.rewards or self.infos or self.truncations)


class Policy:
    """Actions (N, 4) for N environments of one task."""

    def __init__(self, task_name: str, kind: str, seed: int, num_envs: int) -> None:
        self._kind = kind
        self._generator = np.random.default_rng(seed)
        scripted = ENV_POLICY_MAP[task_name] if kind == "scripted" else None
        self._scripted = [scripted() for _ in range(num_envs)] if scripted else []

    def act(self, observations: NDArray[np.float64]) -> NDArray[np.float32]:
        """Choose actions (N, 4) for observations (N, O)."""
        noise = self._generator.normal(size=(len(observations), 4))
        if self._kind == "scripted":
            wanted = wanted_actions(self._scripted, observations)
            return np.clip(wanted + NOISE * noise, -1, 1).astype(np.float32)
        actions = np.tanh(noise)
        if self._kind == "beyond":
            actions = np.where(noise > 0.5, 1.0, np.where(noise < -0.5, -1.0, 3 * noise))
        return actions.astype(np.float32)


def compare_task(
    task_name: str, *, num_goals: int, steps: int, kinds: tuple[str, ...], reward_version: str
) -> Differences:
    """Play `num_goals` goals of a task in both environments with the same actions.

    Args:
        task_name: An official task.
        num_goals: How many of the 50 goals, each for one episode and kind of actions.
        steps: Length of an episode; the comparison runs one step into the next.
        kinds: Kinds of actions, among `ACTIONS`.
        reward_version: `v1` or `v2`.
    """
    options: dict[str, Any] = {
        "seed": 0,
        "envs_per_task": num_goals,
        "max_episode_steps": steps,
        "reward_version": reward_version,
    }
    engine = envs.make_vec(task_name, engine="fast", **options)
    official = envs.make_vec(task_name, engine="official", **options)
    differences = Differences(compiled=not engine.python_tasks)  # type: ignore[attr-defined]
    goals = {"goal_indices": np.arange(num_goals)}
    for index, kind in enumerate(kinds):
        if kind == "scripted" and task_name not in ENV_POLICY_MAP:
            continue  # a task of somebody's own
        policy = Policy(task_name, kind, seed=index, num_envs=num_goals)
        observations, _ = official.reset(options=goals)
        here, _ = engine.reset(options=goals)
        differences.observations += _rows_that_differ(here, observations)
        ever = np.zeros(num_goals, np.bool_)
        for _ in range(steps + 1):
            actions = policy.act(observations)
            result = official.step(actions)
            _compare_step(differences, engine.step(actions), result)
            observations = result[0]
            ever |= result[4]["success"]
        differences.successes += int(ever.sum()) if kind == "scripted" else 0
    engine.close()
    official.close()
    return differences


def _compare_step(differences: Differences, here: Any, there: Any) -> None:
    differences.steps += len(there[0])
    differences.observations += _rows_that_differ(here[0], there[0])
    differences.observations += _rows_that_differ(here[4]["final_obs"], there[4]["final_obs"])
    differences.rewards += _rows_that_differ(here[1], there[1])
    differences.truncations += _rows_that_differ(here[3], there[3])
    relative = np.abs(here[1] - there[1]) / np.maximum(np.abs(there[1]), 1e-300)
    differences.largest = max(differences.largest, float(relative.max()))
    for name, values in there[4].items():
        differences.infos += _rows_that_differ(here[4][name], values)


def _rows_that_differ(here: NDArray[Any], there: NDArray[Any]) -> int:
    """Count the rows whose bits differ."""
    if here.dtype != there.dtype or here.shape != there.shape:
        return len(there)
    return int(sum(a.tobytes() != b.tobytes() for a, b in zip(here, there, strict=True)))


def _print_row(*cells: Any) -> None:
    row = "| {:<28} | {:>8} | {:>9} | {:>7} | {:>6} | {:>9} | {:>8} | {:>8} | {:>7} |"
    print(row.format(*cells), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Compare all tasks of a benchmark; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--benchmark", nargs="+", default=["MT50"], help="a benchmark or tasks")
    parser.add_argument("--goals", type=int, default=20, help="goals per task")
    parser.add_argument("--steps", type=int, default=500, help="steps per episode")
    parser.add_argument("--actions", nargs="+", choices=ACTIONS, default=list(ACTIONS))
    parser.add_argument("--reward-version", default="v2", choices=("v1", "v2"))
    parser.add_argument("--import", dest="module", help="a module that registers tasks")
    options = parser.parse_args(arguments)
    if options.module:
        importlib.import_module(options.module)

    _print_row(
        "task", "steps", "obs !=", "rew !=", "info !=", "largest", "success", "reward", "seconds"
    )
    failed = 0
    for name in envs.task_names(options.benchmark):
        begun = time.perf_counter()
        result = compare_task(
            name,
            num_goals=options.goals,
            steps=options.steps,
            kinds=tuple(options.actions),
            reward_version=options.reward_version,
        )
        failed += not result.exact
        scripted = f"{result.successes}/{options.goals}" if "scripted" in options.actions else "-"
        _print_row(
            name,
            result.steps,
            result.observations,
            result.rewards,
            result.infos,
            f"{result.largest:.1e}",
            scripted,
            "compiled" if result.compiled else "Python",
            f"{time.perf_counter() - begun:.0f}",
        )
    print(f"\n{failed} tasks differ" if failed else "\nall tasks are bit-equal")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
