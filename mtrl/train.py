"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from .evaluate import Evaluation
from .replay import Replay
from .types import Agent, Batch, Environments, Logger, State


@dataclass(frozen=True)
class Schedule:
    """When what happens, in environment steps over all tasks unless said otherwise."""

    total_steps: int
    warmup_steps: int
    """Steps with random actions and without updates, at the start."""
    batch_size: int
    """Transitions per task in an update."""
    update_ratio: float
    """Updates per environment step of a single task, honoured exactly."""
    log_every: int
    eval_every: int
    checkpoint_every: int

    def updates_after(self, env_steps: int, num_tasks: int) -> int:
        """Return how many updates must have happened after so many environment steps."""
        # As the decimal number it was given as: 100 * 0.29 is 28.999999999999996 in floats.
        ratio = Fraction(str(self.update_ratio))
        return math.floor(max(0, env_steps - self.warmup_steps) * ratio / num_tasks)


@dataclass
class Progress:
    """How far a run has come."""

    env_steps: int = 0
    updates: int = 0
    seconds: float = 0.0
    evaluation_due: bool = False


class EpisodeTracker:
    """Collects the returns and successes of training episodes as they end.

    Args:
        task_names: K names.
        envs_per_task: N.
    """

    def __init__(self, task_names: tuple[str, ...], envs_per_task: int) -> None:
        self._task_names = task_names
        self._tasks = np.repeat(np.arange(len(task_names)), envs_per_task)
        self._returns = np.zeros(len(self._tasks))
        self._reached = np.zeros(len(self._tasks), dtype=bool)
        self._ended: list[tuple[int, float, bool]] = []

    def add(self, rewards: np.ndarray, success: np.ndarray, ended: np.ndarray) -> None:
        """Take one step's rewards, success flags and episode ends, each ``(K * N,)``."""
        self._returns += rewards
        self._reached |= success.astype(bool)
        for env in np.flatnonzero(ended):
            self._ended.append((self._tasks[env], self._returns[env], self._reached[env]))
        self._returns[ended], self._reached[ended] = 0.0, False

    def pop_metrics(self) -> dict[str, float]:
        """Return means over the episodes ended since the last call, of tasks that had any."""
        metrics: dict[str, float] = {}
        for k, name in enumerate(self._task_names):
            episodes = [(value, reached) for task, value, reached in self._ended if task == k]
            if episodes:
                returns, reached = zip(*episodes, strict=True)
                metrics[f"train/return/{name}"] = float(np.mean(returns))
                metrics[f"train/success_rate/{name}"] = float(np.mean(reached))
        self._ended.clear()
        return metrics


@dataclass
class Trainer:
    """Lets an agent act, remember and learn until the schedule ends.

    Everything it needs is handed to it; it knows neither Meta-World nor SAC.

    Attributes:
        agent: Learns.
        envs: Where it acts. They are reset at the start, so a resumed run begins new episodes.
        replay: What it remembers, on the agent's device.
        schedule: When what happens.
        logger: Where metrics go.
        evaluate: Plays the evaluation protocol; returns None if it was asked to stop on the way.
        save: Stores a state, given how many environment steps it took.
        save_failed: Tells whether the last `save` did, to repeat it at the next log line.
        stop: Asked after each step; once true, training saves its state and ends.
        generator: Draws the random actions of the warm-up.
        device: The agent's.
        on_step: Told of the progress after each step, for displays.
        evaluation: The latest one of this process.
    """

    agent: Agent
    envs: Environments
    replay: Replay
    schedule: Schedule
    logger: Logger
    evaluate: Callable[[Agent], Evaluation | None]
    save: Callable[[State, int], object]
    stop: Callable[[], bool]
    generator: torch.Generator
    device: torch.device | str = "cpu"
    save_failed: Callable[[], bool] = lambda: False
    on_step: Callable[[Progress], object] | None = None
    progress: Progress = field(default_factory=Progress)
    evaluation: Evaluation | None = None

    def __post_init__(self) -> None:
        """Set up what is gathered between two lines of metrics."""
        self._episodes = EpisodeTracker(self.envs.task_names, self.envs.envs_per_task)
        self._learned: Mapping[str, Tensor] = {}

    def run(self) -> bool:
        """Train to the end of the schedule, or until `stop` says so.

        Returns:
            Whether the schedule, its last evaluation included, was finished.
        """
        schedule, progress = self.schedule, self.progress
        self._clock = _Clock(progress)
        if progress.evaluation_due:  # the run was stopped inside that evaluation
            self._evaluate()
            self._save()  # lest a second interruption repeats it
        observations = self._tensor(self.envs.reset()[0])
        stopping = self.stop()
        while progress.env_steps < schedule.total_steps and not stopping:
            before = progress.env_steps
            observations = self._act(observations)
            self._learn()
            self._clock.tick()
            if self.on_step:
                self.on_step(progress)
            if self._crossed(schedule.log_every, before):
                episodes, learned = self._episodes.pop_metrics(), self._flatten(self._learned)
                self._log(episodes | learned | self._clock.rates())
            if self._crossed(schedule.eval_every, before):
                self._evaluate()
            stopping = self.stop()
            due = self._crossed(schedule.checkpoint_every, before)
            again = self._crossed(schedule.log_every, before) and self.save_failed()
            if due or again or stopping:
                self._save()
        return progress.env_steps >= schedule.total_steps and not progress.evaluation_due

    def _act(self, observations: Tensor) -> Tensor:
        """Take one step in all environments and remember it; return the next observations."""
        if self.progress.env_steps < self.schedule.warmup_steps:
            shape = (*observations.shape[:2], *self.envs.single_action_space.shape)
            actions = torch.rand(shape, generator=self.generator) * 2 - 1
        else:
            actions = self.agent.act(observations)
        arrived, rewards, terminated, truncated, infos = self.envs.step(
            actions.flatten(0, 1).cpu().numpy()
        )
        transitions = Batch(
            observations=observations,
            actions=actions,
            rewards=self._tensor(rewards),
            # Where an episode ended, `arrived` is already the next one's first observation.
            next_observations=self._tensor(infos["final_obs"]),
            # A time limit is no end of the task: only termination stops values from bootstrapping.
            terminated=self._tensor(terminated),
        )
        self.replay.add(transitions)
        self._episodes.add(rewards, infos["success"], terminated | truncated)
        self.progress.env_steps += len(rewards)
        return self._tensor(arrived)

    def _learn(self) -> None:
        """Take the updates that are due by now."""
        due = self.schedule.updates_after(self.progress.env_steps, self.envs.num_tasks)
        while self.progress.updates < due:
            self._learned = self.agent.update(self.replay.sample(self.schedule.batch_size))
            self.progress.updates += 1

    def _evaluate(self) -> None:
        self.progress.evaluation_due = True
        evaluation = self.evaluate(self.agent)
        self._clock.tick(count=False)
        if evaluation is not None:
            self.progress.evaluation_due = False
            self.evaluation = evaluation
            self._log(evaluation.metrics())

    def _save(self) -> None:
        self.save(self.state_dict(), self.progress.env_steps)
        self._clock.tick(count=False)

    def _crossed(self, every: int, before: int) -> bool:
        """Tell whether the step after `before` reached the end or a multiple of `every`."""
        now = self.progress.env_steps
        return now // every > before // every or now >= self.schedule.total_steps

    def _tensor(self, array: np.ndarray) -> Tensor:
        """Give an array ``(K * N, ...)`` its task axis, on the agent's device."""
        tensor = torch.as_tensor(array, dtype=torch.float32, device=self.device)
        return tensor.view(self.envs.num_tasks, self.envs.envs_per_task, *tensor.shape[1:])

    def _flatten(self, metrics: Mapping[str, Tensor]) -> dict[str, float]:
        """Spell per-task metrics out by task; the one place where training waits for the device."""
        flat: dict[str, float] = {}
        for key, value in metrics.items():
            if value.ndim == 0:
                flat[key] = value.item()
            else:
                names = (f"{key}/{name}" for name in self.envs.task_names)
                flat.update(zip(names, value.tolist(), strict=True))
        return flat

    def _log(self, metrics: Mapping[str, float | int]) -> None:
        progress = {
            "progress/env_steps": self.progress.env_steps,
            "progress/updates": self.progress.updates,
            "time/seconds": self.progress.seconds,
        }
        self.logger.log({**progress, **metrics})

    def state_dict(self) -> State:
        """Return everything that training needs to go on."""
        return {
            "progress": dict(vars(self.progress)),
            "agent": self.agent.state_dict(),
            "replay": self.replay.state_dict(),
            "envs": self.envs.get_state(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on from a saved state, with new episodes."""
        self.progress = Progress(**state["progress"])
        self.agent.load_state_dict(state["agent"])
        self.replay.load_state_dict(state["replay"])
        self.envs.set_state(state["envs"])
        self.generator.set_state(state["generator"])


class _Clock:
    """Adds up a run's seconds and measures its rates, evaluations and saves apart."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last = time.perf_counter()
        self._begin_window()

    def tick(self, *, count: bool = True) -> None:
        """Add the time since the last tick; to the rates only if it is to count."""
        now = time.perf_counter()
        self._progress.seconds += now - self._last
        self._window += (now - self._last) * count
        self._last = now

    def rates(self) -> dict[str, float]:
        """Return steps and updates per second since the last call."""
        window = max(self._window, 1e-9)
        steps = (self._progress.env_steps - self._steps) / window
        updates = (self._progress.updates - self._updates) / window
        self._begin_window()
        return {"time/env_steps_per_second": steps, "time/updates_per_second": updates}

    def _begin_window(self) -> None:
        self._window = 0.0
        self._steps, self._updates = self._progress.env_steps, self._progress.updates
