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

from .episodes import EpisodeTracker
from .evaluate import Evaluation
from .graph import Updates
from .guard import Guard
from .replay import Replay
from .seeding import restore_generator
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
    overlap: bool = False
    """Learn while the environments take their next step, from what was there before it."""
    compile: bool = False
    """Compile updates, if that works; see `mtrl.compiled`."""

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
    score: float | None = None
    """Success rate of the agent as it is; None where it has learned since the last evaluation."""

    @classmethod
    def from_state(cls, state: State) -> Progress:
        """Rebuild what `vars` gave.

        Raises:
            ValueError: Something is missing, of another type, or negative.
        """
        kinds = {"seconds": float, "evaluation_due": bool}
        for name, value in state.items():
            kind = kinds.get(name, int)
            if name == "score" and (value is None or type(value) is float):
                continue
            if type(value) is not kind or not value >= 0:
                raise ValueError(f"`progress` has {name} = {value!r}")
        if state.keys() != vars(cls()).keys():
            raise ValueError(f"`progress` has {sorted(state)}")
        return cls(**state)

    def is_later_than(self, metrics: Mapping[str, object]) -> bool:
        """Tell whether a line of metrics was logged before this point of the run."""
        env_steps = metrics.get("progress/env_steps")
        if not isinstance(env_steps, int | float):  # somebody's own
            return True
        if env_steps != self.env_steps:
            return env_steps < self.env_steps
        # Of one step, the line of training comes first, and the evaluation may yet be due.
        return "time/env_steps_per_second" in metrics or not self.evaluation_due


@dataclass
class Trainer:
    """Lets an agent act, remember and learn until the schedule ends.

    Everything it needs is handed to it; it knows neither Meta-World nor SAC.

    Attributes:
        agent: Learns.
        envs: Where it acts.
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
        self._guard = Guard(self.envs.task_names, self.envs.envs_per_task)
        self._learned: Mapping[str, Tensor] = {}
        self._observations: Tensor | None = None  # (K, N, O) what the agent sees now
        per_step = self.schedule.update_ratio * self.envs.envs_per_task
        self._updates = Updates(
            self._update,
            at_once=max(1, math.floor(per_step)),
            generators=(*self.agent.generators, self.replay.generator),
            device=self.device,
            compiled=self.schedule.compile,
        )

    @property
    def compiles(self) -> bool:
        """Whether updates are compiled, or will be as far as is known."""
        return self._updates.compiled

    def run(self) -> bool:
        """Train to the end of the schedule, or until `stop` says so.

        Returns:
            Whether the schedule, its last evaluation included, was finished.

        Raises:
            NonFiniteError: Numbers have not been finite for too long.
        """
        schedule, progress = self.schedule, self.progress
        self._clock = _Clock(progress)
        if progress.evaluation_due:  # the run was stopped inside that evaluation
            self._evaluate()
            self._save()  # lest a second interruption repeats it
        if self._observations is None:
            self._observations = self._tensor(self.envs.reset()[0])
        stopping = self.stop()
        while progress.env_steps < schedule.total_steps and not stopping:
            before = progress.env_steps
            self._observations = self._advance(self._observations)
            self._guard.check_steps(progress.env_steps)
            self._clock.tick()
            if self.on_step:
                self.on_step(progress)
            if self._crossed(schedule.log_every, before):
                self._guard.check_updates(progress.env_steps)
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

    def _advance(self, observations: Tensor) -> Tensor:
        """Take one step everywhere, and the updates that are due; return what is seen then.

        With overlap the updates are those that were due before the step, from a replay that does
        not know it yet: nothing depends on which of the two takes longer.
        """
        overlap = self.schedule.overlap
        actions = self._choose(observations)
        sent = self._guard.actions(actions.flatten(0, 1).cpu().numpy(), self.progress.env_steps)
        self.envs.send(sent)
        if overlap:
            self._learn()
        arrived = self._remember(observations, sent)
        if not overlap or self.progress.env_steps >= self.schedule.total_steps:
            self._learn()
        return arrived

    def _choose(self, observations: Tensor) -> Tensor:
        if self.progress.env_steps >= self.schedule.warmup_steps:
            return self.agent.act(observations)
        shape = (*observations.shape[:2], *self.envs.single_action_space.shape)
        return torch.rand(shape, generator=self.generator) * 2 - 1

    def _remember(self, observations: Tensor, actions: np.ndarray) -> Tensor:
        """Receive a step and store its transitions; return the next observations."""
        arrived, rewards, terminated, truncated, infos = self.envs.recv()
        final = infos["final_obs"]
        left_out = self._guard.step(
            arrived, rewards, final, infos["diverged"], self.progress.env_steps
        )
        ended = terminated | truncated
        # What the replay works with on the host stays there: to ask the device is to wait for it.
        transitions = Batch(
            observations=observations,
            actions=self._by_task(actions),
            rewards=self._by_task(rewards),
            # Where an episode ended, `arrived` is already the next one's first observation.
            next_observations=self._tensor(final),
            # A time limit is no end of the task: only termination stops values from bootstrapping.
            terminated=self._by_task(terminated),
            steps=torch.ones(observations.shape[:2]),
        )
        shape = observations.shape[:2]
        self.replay.add(transitions, ended.reshape(shape), left_out=left_out.reshape(shape))
        self._episodes.add(rewards, infos["success"], ended, broken=left_out)
        self.progress.env_steps += len(rewards)
        self.progress.score = None
        return self._tensor(arrived)

    def _learn(self) -> None:
        """Take the updates that are due by now."""
        due = self.schedule.updates_after(self.progress.env_steps, self.envs.num_tasks)
        if self.replay.size == 0:  # of a task: they are made up for
            return
        if self.progress.updates < due:
            self._learned = self._updates(due - self.progress.updates)
            self.progress.updates = due

    def _update(self) -> dict[str, Tensor]:
        metrics = self.agent.update(self.replay.sample(self.schedule.batch_size))
        self._guard.update(metrics)
        return metrics

    def _evaluate(self) -> None:
        self.progress.evaluation_due = True
        evaluation = self.evaluate(self.agent)
        self._clock.tick(count=False)
        if evaluation is not None:
            self.progress.evaluation_due = False
            self.progress.score = evaluation.success_rate
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
        return self._by_task(array).to(self.device)

    def _by_task(self, array: np.ndarray) -> Tensor:
        """Give an array its task axis, on the host."""
        tensor = torch.as_tensor(array, dtype=torch.float32)
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
            "observations": self._observations,
            "episodes": self._episodes.state_dict(),
            "guard": self._guard.state_dict(),
            "learned": {name: value.clone() for name, value in self._learned.items()},
        }

    def load_state_dict(self, state: State) -> None:
        """Go on from a saved state as if there had been no stop.

        Nothing of it is kept: its arrays may be views of a file, which could not be freed.
        """
        self.progress = Progress.from_state(state["progress"])
        self.agent.load_state_dict(state["agent"])
        self.replay.load_state_dict(state["replay"])
        self.envs.set_state(state["envs"])
        restore_generator(self.generator, state["generator"])
        if (observations := state["observations"]) is not None:
            self._observations = self._tensor(observations.flatten(0, 1).numpy()).clone()
        self._episodes.load_state_dict(state["episodes"])
        self._guard.load_state_dict(state["guard"])
        self._learned = {name: value.clone() for name, value in state["learned"].items()}
        self._updates.forget()


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
