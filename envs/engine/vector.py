"""Meta-World as fast as its physics, with the official numbers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Container
from typing import Any

import mujoco
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from mtrl.cores import available_cores
from mtrl.errors import RunError

from ..errors import EngineUnfitError
from ..metaworld import common_observation_space
from ..rendering import MujocoVectorEnv
from ..vector import Outcome, VectorOptions
from .check import first_difference
from .models import make_environments
from .official import OfficialRewards
from .scene import MEASURES
from .simulation import Simulation
from .tasks import find_task
from .template import Template, cached_goals
from .workers import Workers

STEP_SECONDS = 60.0
"""A step that takes longer hangs; the slowest sound ones take a second."""

MAX_FAILURES = 10
"""So many failed steps of simulations end the training: something is wrong for good."""

_logger = logging.getLogger("mtrl")


class EngineVectorEnv(MujocoVectorEnv):
    """The official environments' trajectories, bit for bit, from compiled kernels.

    A step can be split: `send(actions)` starts it on the engine's threads and returns at once,
    `recv()` waits for it and returns what `step` returns. `step` has the calling thread take part:
    quicker where there are few environments, but nobody would notice if that thread hung. The
    number of threads does not change any result.

    `infos` holds what `OfficialVectorEnv` gives and `diverged`: where it is True, MuJoCo gave up
    on the simulation, or its step failed, hung or was cut short by an interrupt. The episode is
    truncated there with the last sound observation, reward and measures 0: nothing of it happened,
    so such a step is better left out of a replay.

    Attributes:
        num_diverged: Steps lost to diverged simulations so far.
        num_failures: How often a simulation failed or hung and was replaced, in this process.
        python_tasks: Names of the tasks whose rewards run as official Python code.
    """

    def __init__(
        self,
        task_names: tuple[str, ...],
        options: VectorOptions,
        *,
        reward_version: str,
        goal_seed: int,
        one_goal_stream: bool,
        num_threads: int | None = None,
    ) -> None:
        """Load K models, compile or load the kernels and compare a few steps per task.

        Args:
            task_names: Names of V3 tasks.
            options: The caller's choices.
            reward_version: `v1` or `v2`; `v1` has no kernels and runs the official Python code.
            goal_seed: Seed of the 50 goals of every task.
            one_goal_stream: Whether the goals of all tasks come from one stream, as a named
                benchmark's do, or from one stream per task.
            num_threads: Threads that simulate; as many as there are cores by default.

        Raises:
            EngineUnfitError: if the comparison fails; `engine="official"` still works then.
        """
        threads = num_threads or available_cores()
        envs = make_environments(task_names, reward_version, threads)
        goals = cached_goals(envs, task_names, goal_seed, one_stream=one_goal_stream)
        super().__init__(
            task_names,
            options,
            observation_space=common_observation_space(envs),
            action_space=Box(-1.0, 1.0, (4,), np.float32),
        )
        self._reward_version = reward_version
        self._templates = [Template(*pair) for pair in zip(envs, goals, strict=True)]
        kernels = [find_task(name) if reward_version == "v2" else None for name in task_names]
        self._simulation = Simulation(self._templates, kernels, self.envs_per_task, threads)
        compiled = {index for index, task in enumerate(kernels) if task is not None}
        self._python_rewards = self._compare_with_official(compiled)
        self._stable = np.zeros_like(self._simulation.observations)
        self.num_diverged = 0
        self.num_failures = 0
        self._job = self._simulation.begin()
        self._takes_part = False
        self._workers = Workers(threads)

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Return all that decides the steps to come, physics within an episode included.

        `set_state` continues from it bit for bit, in another process too.

        Raises:
            RuntimeError: between `send` and `recv`.
        """
        common = super().get_state()
        physics = [self._simulation.physics(row) for row in range(self.num_envs)]
        widest = max(state.size for state in physics)
        return {
            **common,
            **self._python_rewards.get_state(),
            "goals": self._goals_played(),
            "num_diverged": np.array(self.num_diverged),
            "physics": np.array([np.pad(state, (0, widest - state.size)) for state in physics]),
            "scenes": self._simulation.get_scenes(),
            "frames": self._simulation.frames.copy(),
            "observations": self._simulation.observations.copy(),
        }

    def set_state(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore what `get_state` returned; the next call may be `step`.

        Raises:
            RuntimeError: between `send` and `recv`.
            ValueError: if the state is not one of these tasks, goals and numbers of environments.
        """
        self._refuse_closed()
        self._refuse_in_flight("set_state")
        self._refuse_foreign(state)
        super().set_state(state)
        self.num_diverged = int(state["num_diverged"])
        for row in range(self.num_envs):
            self._restore(row, int(self._goal_indices[row]))
            size = self._simulation.physics(row).size
            self._simulation.set_physics(row, state["physics"][row, :size])
        self._simulation.set_scenes(state["scenes"])
        self._simulation.frames[:] = state["frames"]
        self._simulation.observations[:] = state["observations"]
        self._python_rewards.set_state(_attributes(state))

    def _physics(self, index: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
        return self._simulation.drawable(index)

    def close_extras(self, **kwargs: Any) -> None:
        """Let a step in flight end and stop the threads."""
        super().close_extras(**kwargs)
        workers = getattr(self, "_workers", None)  # absent where construction failed
        if workers is not None:
            workers.close()
        for template in getattr(self, "_templates", []):
            template.env.close()

    def _reset_envs(
        self, indices: NDArray[np.int64], goal_indices: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        for row, goal in zip(indices.tolist(), goal_indices.tolist(), strict=True):
            self._restore(row, goal)
        return self._simulation.observations[indices]

    def _begin_step(self, actions: NDArray[Any], *, waits: bool) -> None:
        self._job = self._simulation.begin(self._resting)
        self._takes_part = waits
        self._simulation.actions[:] = actions
        self._stable[:] = self._simulation.observations
        self._workers.start(self._job, self._workers.num_threads - waits)

    def _end_step(self) -> Outcome:
        failed = self._wait()
        if failed:
            self._replace(failed)
        simulation = self._simulation
        if simulation.diverged.any():
            self._end_lost(np.flatnonzero(simulation.diverged & ~self._resting), failed)
        rewards = simulation.measures["reward"]
        infos: dict[str, NDArray[Any]] = {name: simulation.measures[name] for name in MEASURES}
        infos["success"] = infos["success"] > 0
        infos["unscaled_reward"] = rewards
        infos["diverged"] = simulation.diverged
        return Outcome(simulation.observations, rewards, infos)

    def _wait(self) -> dict[int, BaseException]:
        """Wait for physics, then rewards that are Python; returns what failed, by row."""
        error = self._take_part() if self._takes_part else None
        error = self._workers.wait(STEP_SECONDS) or error or RuntimeError("it was interrupted")
        failed = dict.fromkeys(self._simulation.unfinished_rows(), error)
        if self.python_tasks:
            missing: dict[int, BaseException] = {}
            skipped = {*failed, *np.flatnonzero(self._resting).tolist()}
            evaluate = functools.partial(self._python_rewards.evaluate_all, skipped, missing)
            self._workers.start(evaluate, 1)
            self._workers.wait(STEP_SECONDS)
            failed = failed | missing
        return failed

    def _take_part(self) -> BaseException | None:
        """Step in the calling thread too: waking another costs as much as stepping one row."""
        try:
            self._job()
        except Exception as error:
            return error
        return None

    def _replace(self, failed: dict[int, BaseException]) -> None:
        """Go on without the simulations in which rows failed, and mark these as diverged.

        A thread that hangs may come back at any time and write to what it was given. So everything
        of the tasks concerned is made anew, and what the other rows were at is copied.
        """
        rows = sorted(failed)
        tasks = sorted({row // self.envs_per_task for row in rows})
        names = ", ".join(self.task_names[task] for task in tasks)
        self.num_failures += 1
        reason = f"the simulation of {names} failed ({failed[rows[0]]!r})"
        if self.num_failures >= MAX_FAILURES:
            raise RunError(f"{reason}, {MAX_FAILURES} times in all: add `--resume` to go on")
        _logger.warning("%s and is replaced; its episodes are dropped", reason)
        self._in_flight = False  # nothing is waited for any more: states may be taken and set
        try:
            self._make_anew(tasks, rows)
        except BaseException:
            self._in_flight = True  # whoever interrupted it finds the step unfinished
            raise

    def _make_anew(self, tasks: list[int], rows: list[int]) -> None:
        state, old = self.get_state(), self._simulation
        fresh = make_environments(
            [self.task_names[task] for task in tasks], self._reward_version, 1
        )
        for task, env in zip(tasks, fresh, strict=True):
            self._templates[task] = Template(env, self._templates[task].goals)
        self._simulation = old.remade(self._templates)
        self._python_rewards = self._python_rewards.remade(self._simulation, self._templates)
        self.set_state(state)
        self._simulation.measures[:] = old.measures
        self._simulation.diverged[:] = old.diverged
        self._simulation.diverged[rows] = True

    def _end_lost(self, rows: NDArray[np.intp], failed: Container[int]) -> None:
        """End the episodes of rows that diverged, or else have been told to have failed."""
        self._simulation.observations[rows] = self._stable[rows]
        self._simulation.measures[rows] = 0
        self._elapsed[rows] = self.max_episode_steps - 1  # so that this step is the last
        self.num_diverged += rows.size
        diverged = [row for row in rows.tolist() if row not in failed]
        if names := sorted({self.task_names[row // self.envs_per_task] for row in diverged}):
            _logger.warning(
                "the simulation of %s diverged and was reset (%d times in all)",
                ", ".join(names),
                self.num_diverged,
            )

    def _restore(self, row: int, goal: int) -> None:
        snapshot = self._templates[row // self.envs_per_task].snapshot(goal)
        self._simulation.restore(row, snapshot)
        if row in self._python_rewards:
            self._python_rewards.restore(row, snapshot)

    def _goals_played(self) -> NDArray[np.float64]:
        """Coordinates (K*N, G) of the goals being played, padded with zeros."""
        goals = [
            self._templates[row // self.envs_per_task].goals[goal]
            for row, goal in enumerate(self._goal_indices)
        ]
        widest = max(goal.size for goal in goals)
        return np.array([np.pad(goal, (0, widest - goal.size)) for goal in goals])

    def _refuse_foreign(self, state: dict[str, NDArray[Any]]) -> None:
        expected, found = _shapes(self.get_state()), _shapes(state)
        if found != expected:
            differing = sorted(
                key for key in {*found, *expected} if found.get(key) != expected.get(key)
            )
            raise ValueError(f"`state` is not one of these environments: {differing} differ")
        self._python_rewards.refuse_foreign(_attributes(state))
        goal_indices = state["goal_indices"]
        if goal_indices.min() < 0 or goal_indices.max() >= self.num_goals:
            raise ValueError(f"`state` has goals outside [0, {self.num_goals}): {goal_indices}")
        goals = [
            self._templates[row // self.envs_per_task].goals[goal]
            for row, goal in enumerate(goal_indices)
        ]
        for goal, recorded in zip(goals, state["goals"], strict=True):
            if not np.array_equal(goal, recorded[: goal.size]):
                raise ValueError("`state` was saved with other goals: check `goal_seed`")

    def _compare_with_official(self, compiled: set[int]) -> OfficialRewards:
        """Decide which tasks run their official Python rewards, and set those up."""
        simulation, templates = self._simulation, self._templates
        for index in sorted(compiled):
            row = index * self.envs_per_task
            difference = first_difference(simulation, templates[index], row)
            if difference is not None:
                _logger.warning(
                    "this machine rounds differently: %s of %s is not the official one, so the "
                    "official Python reward is used",
                    difference,
                    self.task_names[index],
                )
                simulation.use_python_reward(index)
                compiled.remove(index)
        python = [index for index in range(self.num_tasks) if index not in compiled]
        self.python_tasks = tuple(self.task_names[index] for index in python)
        rows = [
            index * self.envs_per_task + n for index in python for n in range(self.envs_per_task)
        ]
        rewards = OfficialRewards(simulation, templates, rows)
        for index in python:
            row = index * self.envs_per_task
            difference = first_difference(simulation, templates[index], row, rewards)
            if difference is not None:
                raise EngineUnfitError(
                    f"this machine rounds differently: {difference} of {self.task_names[index]}"
                )
        if python:
            _say_once(
                "no compiled rewards for "
                + ", ".join(self.python_tasks)
                + ": the official Python code runs on the engine's physics, which is slower"
            )
        return rewards


def _attributes(state: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Pick what belongs to official Python rewards."""
    return {key: value for key, value in state.items() if key.startswith("attributes/")}


def _shapes(state: dict[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    """Map key to shape, but for attributes: which there are depends on what was played."""
    return {
        key: np.shape(value) for key, value in state.items() if not key.startswith("attributes/")
    }


@functools.cache
def _say_once(message: str) -> None:
    _logger.warning(message)
