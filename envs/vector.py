"""The shared half of every environment here: goals, time limit, autoreset, one-hot."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from .goals import NUM_GOALS, GoalSchedule

StepResult: TypeAlias = tuple[
    NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
]


@dataclass(frozen=True)
class Outcome:
    """What one step of all K*N environments led to, before any reset.

    Attributes:
        observations: (K*N, O), without the one-hot.
        rewards: (K*N,).
        infos: Measures of the step taken, (K*N,) each.

    The arrays may be buffers that the next call overwrites: the caller copies what it keeps.
    """

    observations: NDArray[np.float64]
    rewards: NDArray[np.float64]
    infos: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class VectorOptions:
    """What a caller chooses about any multi-task vector environment; see `envs.make_vec`."""

    seed: int
    envs_per_task: int
    max_episode_steps: int
    goals: str
    one_hot: bool
    ends_with_success: bool = False
    render_mode: str | None = None
    camera: str | int = "corner2"
    render_size: tuple[int, int] = (480, 480)


class MultiTaskVectorEnv(VectorEnv[NDArray[np.float64], NDArray[Any], NDArray[Any]], abc.ABC):
    """N environments of each of K tasks; environment `k * N + n` is the n-th of task k.

    An episode plays one of its task's 50 goals and lasts exactly `max_episode_steps`, less only
    where it comes to an observation or reward that is not finite. Success ends it, with
    `terminated`, only where `ends_with_success`. Autoreset happens in the same step: the
    observation returned with `terminated` or `truncated` is already the next episode's first.

    Where goals are played `once`, an environment that has none left rests until `reset`: it stands
    still, its rewards and measures are 0, none of its steps ends anything, and its simulation
    costs as little as the engine can make it.

    `infos` holds dense arrays of the step taken, also where it ended an episode: `success` (bool),
    `goal_index` (of the episode the step belonged to), the measures of the concrete class, and
    `final_obs` (K*N, O): the observation the step led to. Where `_final_obs` (K*N,) is True that
    is the episode's last, and elsewhere it equals the observation returned, so `final_obs` is
    always the right next observation of a transition. Where `diverged` (K*N,) is True the
    simulation gave up: that step never happened, and its episode ends.

    Attributes:
        task_names: K names, in the order of the one-hot.
        num_tasks: K.
        envs_per_task: N.
        num_envs: K*N.
        one_hot_width: K, whether or not the one-hot is appended to the observations.
        max_episode_steps: Length of an episode.
        ends_with_success: Whether an episode ends where it succeeds.
        num_goals: Goals per task.

    Subclasses step and reset many environments per call through `_end_step` and `_reset_envs`;
    those that simulate in the background begin in `_begin_step` and wait in `_end_step`.
    """

    num_goals = NUM_GOALS

    def __init__(
        self,
        task_names: tuple[str, ...],
        options: VectorOptions,
        *,
        observation_space: Box,
        action_space: Box,
    ) -> None:
        """Set up the spaces and the goal schedule.

        Args:
            task_names: K distinct names.
            options: The caller's choices.
            observation_space: (O,), of one environment of any task and without the one-hot.
            action_space: (A,), of one environment of any task.
        """
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = options.render_mode
        self._options = options
        self.task_names = task_names
        self.num_tasks = self.one_hot_width = len(task_names)
        self.envs_per_task = options.envs_per_task
        self.num_envs = self.num_tasks * self.envs_per_task
        self.max_episode_steps = options.max_episode_steps
        self.ends_with_success = options.ends_with_success

        appended = self.one_hot_width if options.one_hot else 0
        self.single_observation_space = Box(
            np.append(observation_space.low, np.zeros(appended)),
            np.append(observation_space.high, np.ones(appended)),
            dtype=np.float64,
        )
        self.single_action_space = action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(action_space, self.num_envs)

        # Of width zero where no one-hot is asked for, so that the two cases share one path.
        self._one_hot = np.repeat(np.eye(self.num_tasks)[:, :appended], self.envs_per_task, axis=0)
        self._schedule = GoalSchedule(
            options.goals,
            num_tasks=self.num_tasks,
            envs_per_task=self.envs_per_task,
            seed=options.seed,
        )
        self._goal_indices = np.zeros(self.num_envs, np.int64)
        self._elapsed = np.zeros(self.num_envs, np.int64)
        self._resting = np.zeros(self.num_envs, np.bool_)
        self._standing = np.zeros((self.num_envs, *self.single_observation_space.shape))
        self._needs_reset = True
        self._in_flight = False
        self._actions = np.repeat(np.zeros_like(action_space.low)[None], self.num_envs, axis=0)

    @abc.abstractmethod
    def _reset_envs(
        self, indices: NDArray[np.int64], goal_indices: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Start an episode with goal `goal_indices[m]` in environment `indices[m]`.

        Args:
            indices: (M,), distinct and ascending.
            goal_indices: (M,), each in [0, num_goals).

        Returns:
            First observations (M, O), without the one-hot.
        """

    @abc.abstractmethod
    def _end_step(self) -> Outcome:
        """Step all environments with `_actions`, or wait for the step that was begun."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Start a new episode everywhere.

        Goals played in order (`sequential`, `once`) start over; random goals draw on unless `seed`
        is given.

        Args:
            seed: Reseeds every environment's own generator.
            options: May hold `goal_indices`, (K*N,) integers: the goals of the episodes that
                start now. Later episodes draw theirs as usual: `once`, all that are its own.

        Returns:
            Observations (K*N, O) and `goal_index` (K*N,).

        Raises:
            RuntimeError: between `send` and `recv`.
            ValueError: for options that are unknown or out of range.
        """
        self._refuse_closed()
        self._refuse_in_flight("reset")
        if seed is not None:
            self._schedule.reseed(seed)
        self._schedule.restart()
        indices = np.arange(self.num_envs)
        forced = self._forced_goals(options or {})
        self._resting = self._schedule.is_exhausted(indices)  # of more environments than goals
        goal_indices = self._schedule.draw(indices) if forced is None else forced
        observations = self._with_one_hot(self._start_episodes(indices, goal_indices))
        self._standing = observations.copy()
        self._needs_reset = False
        return observations, {"goal_index": self._goal_indices.copy()}

    def step(self, actions: NDArray[Any]) -> StepResult:
        """Take one step everywhere and reset the environments whose episode it ended.

        Does `send` and `recv`.

        Args:
            actions: (K*N, A), finite.

        Returns:
            Observations (K*N, O), rewards, terminated and truncated (K*N,), infos. All arrays are
            fresh: the next step does not write into them.

        Raises:
            ValueError: for actions of a wrong shape or not finite, before anything has moved.
            ResetNeeded: if `reset` has not been called yet.
            ClosedEnvironmentError: after `close`.
            RuntimeError: between `send` and `recv`.
        """
        self._start_step(actions, waits=True)
        return self.recv()

    def send(self, actions: NDArray[Any]) -> None:
        """Start a step, for the caller to do something else before `recv`.

        Args:
            actions: (K*N, A), finite; the caller may reuse the array at once.

        Raises:
            RuntimeError: if the step before was not received.
            ClosedEnvironmentError, ResetNeeded, ValueError: as `step` does, before anything moves.
        """
        self._start_step(actions, waits=False)

    def recv(self) -> StepResult:
        """Return what `step` returns, of the step that `send` started.

        Raises:
            RuntimeError: if nothing was sent.
            ClosedEnvironmentError: after `close`.
        """
        self._refuse_closed()
        if not self._in_flight:
            raise RuntimeError("call send(actions) before recv()")
        outcome = self._end_step()
        self._in_flight = False  # only now: whoever interrupts the wait may call `recv` again
        rests = self._resting
        infos: dict[str, Any] = {name: values.copy() for name, values in outcome.infos.items()}
        infos.setdefault("diverged", np.zeros(self.num_envs, np.bool_))
        rewards, observations = outcome.rewards.copy(), self._with_one_hot(outcome.observations)
        if rests.any():
            observations[rests] = self._standing[rests]
            for values in (rewards, *infos.values()):
                values[rests] = 0
        self._elapsed += ~rests
        # From numbers that are not finite no simulation recovers, so such an episode is over.
        sound = np.isfinite(observations).all(axis=1) & np.isfinite(rewards)
        terminated = infos["success"] & sound & self.ends_with_success
        truncated = ((self._elapsed >= self.max_episode_steps) | ~sound) & ~terminated & ~rests
        infos["goal_index"] = self._goal_indices.copy()
        infos["final_obs"] = observations.copy()
        infos["_final_obs"] = terminated | truncated
        self._go_on(np.flatnonzero(infos["_final_obs"]), observations)
        return observations, rewards, terminated, truncated, infos

    def _go_on(self, ended: NDArray[np.int64], observations: NDArray[np.float64]) -> None:
        """Start the next episodes where one ended, or rest; write what is seen then."""
        if not ended.size:
            return
        exhausted = self._schedule.is_exhausted(ended)
        at_rest, again = ended[exhausted], ended[~exhausted]
        self._resting[at_rest] = True
        # Whoever acts on what it sees needs numbers.
        observations[at_rest] = np.nan_to_num(observations[at_rest], posinf=0.0, neginf=0.0)
        self._standing[at_rest] = observations[at_rest]
        self._elapsed[at_rest] = 0
        if again.size:
            first = self._start_episodes(again, self._schedule.draw(again))
            observations[again, : first.shape[1]] = first

    def _start_step(self, actions: NDArray[Any], *, waits: bool) -> None:
        self._refuse_closed()
        self._refuse_in_flight("step" if waits else "send")
        if self._needs_reset:
            raise ResetNeeded("call reset() before a step")
        checked = self._checked(actions)
        self._in_flight = True  # before: whoever interrupts what follows has to call `recv`
        self._begin_step(checked, waits=waits)

    def _begin_step(self, actions: NDArray[Any], *, waits: bool) -> None:  # noqa: ARG002
        """Keep `actions` and begin what can be done in the background.

        Args:
            actions: (K*N, A), finite and of the space's dtype; the caller may reuse them.
            waits: Whether the caller has nothing else to do until `_end_step`.
        """
        self._actions[:] = actions

    def get_state(self) -> dict[str, Any]:
        """Return all that decides the steps to come, the inside of episodes included.

        `set_state` continues from it bit for bit, in another process too. Subclasses add what
        their simulation needs.

        Raises:
            RuntimeError: between `send` and `recv`.
        """
        self._refuse_in_flight("get_state")
        resting = {"resting": self._resting.copy(), "standing": self._standing.copy()}
        return {
            **(resting if self._options.goals == "once" else {}),
            "generators": self._schedule.get_state(),
            "episodes": self._schedule.episodes.copy(),
            "goal_indices": self._goal_indices.copy(),
            "elapsed": self._elapsed.copy(),
            "needs_reset": np.array(self._needs_reset),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned; the next call may be `step`.

        Raises:
            RuntimeError: between `send` and `recv`.
            ValueError: if the state is not one of these tasks, goals and numbers of environments.
        """
        self._refuse_closed()
        self._refuse_in_flight("set_state")
        own = MultiTaskVectorEnv.get_state(self)
        for key, value in own.items():
            require_array(state, key, value.shape)
        goals, elapsed = state["goal_indices"], state["elapsed"]
        if goals.min() < 0 or goals.max() >= self.num_goals:
            raise ValueError(f"`state` has goals outside [0, {self.num_goals}): {goals}")
        if elapsed.min() < 0 or elapsed.max() >= self.max_episode_steps:
            raise ValueError(f"`state` is not of episodes of {self.max_episode_steps} steps")
        self._schedule.set_state(state["generators"])
        self._schedule.episodes[:] = state["episodes"]
        self._goal_indices[:] = goals
        self._elapsed[:] = elapsed
        if "resting" in own:
            self._resting[:] = state["resting"]
            self._standing[:] = state["standing"]
        self._needs_reset = bool(state["needs_reset"])

    def _refuse_closed(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("the environments were closed: make new ones")

    def _refuse_in_flight(self, call: str) -> None:
        if self._in_flight:
            raise RuntimeError(f"call recv() before {call}(): a step is in flight")

    def _start_episodes(
        self, indices: NDArray[np.int64], goal_indices: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        self._goal_indices[indices] = goal_indices
        self._elapsed[indices] = 0
        return self._reset_envs(indices, goal_indices)

    def _with_one_hot(self, observations: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([observations, self._one_hot], axis=1)

    def _forced_goals(self, options: dict[str, Any]) -> NDArray[np.int64] | None:
        unknown = sorted(set(options) - {"goal_indices"})
        if unknown:
            raise ValueError(f"`options` has unknown keys {unknown}: only 'goal_indices' is known")
        if "goal_indices" not in options:
            return None
        goals = np.asarray(options["goal_indices"])
        if goals.shape != (self.num_envs,) or not np.issubdtype(goals.dtype, np.integer):
            raise ValueError(
                f"`goal_indices` must be integers of shape ({self.num_envs},), "
                f"not {goals.dtype} of shape {goals.shape}"
            )
        if goals.min() < 0 or goals.max() >= self.num_goals:
            raise ValueError(f"`goal_indices` must lie in [0, {self.num_goals}), found {goals}")
        return goals.astype(np.int64)

    def _checked(self, actions: NDArray[Any]) -> NDArray[Any]:
        expected = self.action_space.shape
        if np.shape(actions) != expected:
            raise ValueError(f"`actions` has shape {np.shape(actions)}, expected {expected}")
        # A float64 too large for the space's dtype becomes inf here and is refused below.
        with np.errstate(over="ignore"):
            actions = np.asarray(actions, self.action_space.dtype)
        finite = np.isfinite(actions)
        if not finite.all():
            index = int(np.argmin(finite.all(axis=1)))
            raise ValueError(
                f"`actions` of environment {index} ({self.task_names[index // self.envs_per_task]})"
                f" are not finite: {actions[index]}"
            )
        return actions


def require_array(state: dict[str, Any], key: str, shape: tuple[int, ...]) -> None:
    """Refuse a state that lacks an array.

    Raises:
        ValueError: naming the key.
    """
    found = state.get(key)
    if not isinstance(found, np.ndarray) or found.shape != shape:
        what = "nothing" if found is None else f"one of shape {np.shape(found)}"
        raise ValueError(f"`state` needs {key!r}, an array of shape {shape}, found {what}")
