"""Compose agent, environments, storage and loop from a configuration, and run them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from contextlib import ExitStack, closing

import torch

import envs
from agents import SAC
from mtrl.checkpoint import CheckpointError, load_latest, save_checkpoint
from mtrl.device import keep_freed_memory, resolve_device, resolve_precision, set_threads
from mtrl.errors import UserError
from mtrl.evaluate import Evaluation, evaluate
from mtrl.files import write_json_atomic
from mtrl.logging import JsonlLogger, LoggerGroup, read_metrics
from mtrl.progress import ProgressDisplay, setup_console
from mtrl.provenance import library_versions, machine
from mtrl.replay import Replay
from mtrl.run_directory import RunDirectory, read_config
from mtrl.seeding import make_generator
from mtrl.signals import StopRequest
from mtrl.train import Progress, Schedule, Trainer
from mtrl.types import Agent, Environments, State, Stateful
from mtrl.wandb_logger import WandbLogger

from .command_line import exit_with, parse_options
from .config import MAY_DIFFER_ON_RESUME, Config

_messages = logging.getLogger("mtrl")


def main(benchmark: str) -> None:
    """Train as the command line says; exit with 0, 2 for bad input, or 128 plus a signal."""
    exit_with(lambda: train(parse(benchmark)))


def parse(benchmark: str) -> Config:
    """Read the options off the command line.

    What is left out follows from the benchmark and the budget asked for, or, if a run is to be
    continued, from that run. So the options are read again whenever one of these is known.
    """
    asked = parse_options(Config, Config.for_benchmark((benchmark,)))
    if asked.resume and asked.run_dir is not None:
        return parse_options(Config, Config.from_json(read_config(asked.run_dir)))
    asked = parse_options(Config, Config.for_benchmark(asked.benchmark))
    return parse_options(Config, Config.for_benchmark(asked.benchmark, asked.total_steps))


def train(config: Config) -> int:
    """Train to the end, or until asked to stop; return the exit code."""
    config.validate()
    console = setup_console()
    device = resolve_device(config.device)
    task_names = envs.task_names(config.benchmark)
    set_threads(config.threads)
    keep_freed_memory()
    with ExitStack() as stack:
        run = stack.enter_context(open_run(config))
        state = latest_state(run, config) if config.resume else None
        stop = stack.enter_context(StopRequest())
        _messages.info("run directory: %s", run.path)
        training_envs = stack.enter_context(closing(make_envs(config, config.envs_per_task)))
        display = ProgressDisplay(config.total_steps, task_names, console=console)
        reached = state["progress"]["env_steps"] if state else 0
        logger = LoggerGroup(
            [
                JsonlLogger(run.metrics_path, keep_until_env_steps=reached),
                display,
                WandbLogger(
                    run.path,
                    mode=config.wandb,
                    name=run.path.name,
                    config=config.to_json(),
                    resume=config.resume,
                ),
            ]
        )
        stack.enter_context(closing(logger))
        evaluator = stack.enter_context(closing(Evaluator(config, device, stop)))
        trainer = Trainer(
            agent=make_agent(config, training_envs, device),
            envs=training_envs,
            replay=make_replay(config, training_envs, device),
            schedule=make_schedule(config),
            logger=logger,
            evaluate=evaluator,
            save=lambda state, env_steps: save(run, state, env_steps),
            stop=stop,
            generator=make_generator(config.seed, "warm-up"),
            device=device,
            on_step=lambda progress: display.advance_to(progress.env_steps, progress.updates),
        )
        if state is not None:
            restore(trainer, state, run)
        if not trainer.run():
            _messages.info("stopped; to go on: --resume --run-dir %s", run.path)
        elif evaluation := trainer.evaluation or evaluator(trainer.agent):
            # Without one of this process, the run had been finished before, or all but the summary.
            store_summary(run, summarize(config, evaluation, trainer.progress))
    return stop.exit_code


def open_run(config: Config) -> RunDirectory:
    """Create the run's directory, or open the one to continue in."""
    if config.resume and config.run_dir is not None:
        return RunDirectory.resume(
            config.run_dir, config.to_json(), may_differ=MAY_DIFFER_ON_RESUME
        )
    few = len(config.benchmark) <= 3
    tasks = "+".join(config.benchmark) if few else f"{len(config.benchmark)}-tasks"
    name = f"{tasks}_seed{config.seed}"
    return RunDirectory.create(config.run_dir, config.to_json(), default_name=name)


def latest_state(run: RunDirectory, config: Config) -> State | None:
    """Return the newest good checkpoint's state; none if the run was stopped before its first.

    Raises:
        UserError: If checkpoints are damaged, or missing though the run must have saved some:
            beginning again would throw its metrics away.
    """
    if not any(run.checkpoints_path.glob("step_*")):
        one_step = config.envs_per_task * len(envs.task_names(config.benchmark))
        reached = last_logged_step(run)
        if run.summary_path.exists() or reached >= config.checkpoint_every + one_step:
            raise UserError(
                f"`--resume`: {run.checkpoints_path} has no checkpoint, though the run came to "
                f"{reached} steps: put it back, or start another run in a new `--run-dir`."
            )
        _messages.info("no checkpoint was saved yet: the run starts from the beginning")
        return None
    checkpoint = load_latest(run.checkpoints_path)
    _messages.info("continuing from %s", checkpoint.path)
    return checkpoint.state


def restore(target: Stateful, state: State, run: RunDirectory) -> None:
    """Load a state.

    Raises:
        UserError: If it does not fit, as it was saved by another version of mtrl.
    """
    try:
        target.load_state_dict(state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"the checkpoint in {run.checkpoints_path} does not fit this version of mtrl "
            f"({error!r}): use the version that {run.config_path.name} names."
        ) from error


def last_logged_step(run: RunDirectory) -> int:
    """Return how many environment steps the run's metrics tell of."""
    rows = read_metrics(run.metrics_path) if run.metrics_path.exists() else []
    return max((int(row["progress/env_steps"] or 0) for row in rows), default=0)


def save(run: RunDirectory, state: State, env_steps: int) -> None:
    """Save a checkpoint; a disk that refuses must not end the training."""
    try:
        save_checkpoint(run.checkpoints_path, state, env_steps=env_steps)
    except CheckpointError as error:
        _messages.warning("%s; training goes on", error)


def store_summary(run: RunDirectory, summary: dict[str, object]) -> None:
    """Write summary.json; at the end of a long run a full disk is no reason for a traceback."""
    try:
        write_json_atomic(run.summary_path, summary)
    except OSError as error:
        _messages.warning(
            "%s cannot be written (%s); scripts/evaluate.py %s computes it again",
            run.summary_path,
            error.strerror,
            run.path,
        )


def make_envs(config: Config, envs_per_task: int, *, evaluation: bool = False) -> Environments:
    """Make the environments to train in, or those to evaluate in."""
    made: Environments = envs.make_vec(
        config.benchmark,
        # Evaluation plays its goals in turn and draws nothing: its seed does not matter.
        seed=config.seed,
        envs_per_task=envs_per_task,
        reward_version=config.reward_version,
        engine=config.engine,
        num_threads=config.threads or None,
        goals="sequential" if evaluation else "random",
        one_hot=False,  # the agent appends it, and the replay need not store it
    )
    return made


def make_agent(config: Config, environments: Environments, device: torch.device) -> SAC:
    """Make an agent that fits the environments."""
    return SAC(
        config.agent,
        num_tasks=environments.num_tasks,
        observation_size=environments.single_observation_space.shape[0],
        action_size=environments.single_action_space.shape[0],
        seed=config.seed,
        device=device,
        dtype=resolve_precision(config.precision, device),
    )


def make_replay(config: Config, environments: Environments, device: torch.device) -> Replay:
    """Make a replay that fits the environments."""
    return Replay(
        environments.num_tasks,
        config.replay_capacity,
        environments.single_observation_space.shape[0],
        environments.single_action_space.shape[0],
        generator=make_generator(config.seed, "replay", device),
    )


def make_schedule(config: Config) -> Schedule:
    """Pick the schedule out of the configuration."""
    names = (schedule_field.name for schedule_field in dataclasses.fields(Schedule))
    return Schedule(**{name: getattr(config, name) for name in names})


class Evaluator:
    """Plays the evaluation protocol; its environments are made when first needed, then kept."""

    def __init__(self, config: Config, device: torch.device, stop: Callable[[], bool]) -> None:
        self._config = config
        self._device = device
        self._stop = stop
        self._envs: Environments | None = None

    def __call__(self, agent: Agent) -> Evaluation | None:
        """Evaluate the agent, unless asked to stop on the way."""
        if self._envs is None:
            self._envs = make_envs(self._config, self._config.eval_envs_per_task, evaluation=True)
        return evaluate(agent, self._envs, device=self._device, stop=self._stop)

    def close(self) -> None:
        """Close the environments."""
        if self._envs is not None:
            self._envs.close()


def summarize(config: Config, evaluation: Evaluation, progress: Progress) -> dict[str, object]:
    """State a result together with the protocol it was reached under."""
    num_tasks, num_goals = evaluation.success.shape
    return {
        **evaluation.metrics(),
        "env_steps": progress.env_steps,
        "env_steps_per_task": progress.env_steps // num_tasks,
        "updates": progress.updates,
        "seconds": progress.seconds,
        "protocol": {
            "benchmark": config.benchmark,
            "reward_version": config.reward_version,
            "goals_per_task": num_goals,
            "episodes": num_tasks * num_goals,
            "actions": "deterministic",
            "success": "at any step of the episode",
            "seed": config.seed,
        },
        "versions": library_versions(),
        "machine": machine(),
    }
