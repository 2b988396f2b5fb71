"""Compose agent, environments, storage and loop from a configuration, and run them."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing

import torch

import envs
from agents import SAC
from mtrl.blocks import multiplying_out_is_cheaper
from mtrl.compiled import resolve_compile
from mtrl.device import (
    keep_freed_memory,
    resolve_device,
    resolve_precision,
    set_threads,
    share_cores,
    use_precision,
)
from mtrl.evaluate import Evaluation, evaluate
from mtrl.files import write_json_atomic
from mtrl.guard import NonFiniteError
from mtrl.logging import LoggerGroup
from mtrl.memory import require_memory
from mtrl.progress import ProgressDisplay, setup_console
from mtrl.provenance import library_versions, machine
from mtrl.replay import Replay
from mtrl.run_directory import RunDirectory, read_config
from mtrl.seeding import make_generator
from mtrl.signals import StopRequest
from mtrl.task_rows import FEW
from mtrl.train import Progress, Schedule, Trainer
from mtrl.types import Agent, Environments
from mtrl.wandb_logger import WandbLogger, resolve_wandb_mode

from .command_line import exit_with, import_modules, parse_options, parse_some_options
from .config import MAY_DIFFER_ON_RESUME, Basis, Config
from .resuming import latest_state, open_metrics, restore, tell_differences
from .saving import Saver

_messages = logging.getLogger("mtrl")


def main(benchmark: str) -> None:
    """Train as the command line says.

    Exits with 0, 1 (also where the last save failed), 2 (bad input) or 128 plus a signal.
    """
    exit_with(lambda: train(parse(benchmark)))


def parse(benchmark: str) -> Config:
    """Read the options off the command line.

    What is left out follows from the preset, the benchmark and the budget asked for, or, if a run
    is to be continued, from that run.
    """
    asked = parse_some_options(Basis, Basis((benchmark,)))
    import_modules(asked.imports)
    if asked.resume and asked.run_dir is not None:
        return parse_options(Config, Config.from_json(read_config(asked.run_dir)))
    basis = Config.for_benchmark(asked.benchmark, asked.total_steps or None, asked.preset)
    return parse_options(Config, basis)


def train(config: Config) -> int:
    """Train to the end, or until asked to stop; return the exit code.

    Raises:
        RunError: If it cannot go on.
    """
    config.validate()
    wandb_mode = resolve_wandb_mode(config.wandb)
    console = setup_console()
    device = resolve_device(config.device)
    require_memory(memory_needs(config), device)
    schedule = make_schedule(config, device)
    task_names = envs.task_names(config.benchmark)
    learning, simulating = share_cores(
        config.threads, config.simulation_threads, overlap=config.overlap, device=device
    )
    set_threads(learning)
    keep_freed_memory()
    with ExitStack() as stack:
        run = stack.enter_context(open_run(config))
        state = latest_state(run, config) if config.resume else None
        stop = stack.enter_context(StopRequest())
        _messages.info("run directory: %s", run.path)
        training_envs = stack.enter_context(
            closing(make_envs(config, config.envs_per_task, simulating))
        )
        display = ProgressDisplay(config.total_steps, task_names, console=console)
        metrics = open_metrics(run, state)
        wandb = WandbLogger(
            run.path,
            mode=wandb_mode,
            name=run.path.name,
            config=config.to_json(),
            resume=config.resume,
        )
        logger = stack.enter_context(closing(LoggerGroup([metrics, display, wandb])))
        stack.enter_context(wandb)
        saver = Saver(run, metrics, device, compiles=lambda: trainer.compiles)
        evaluator = stack.enter_context(closing(Evaluator(config, device, stop)))
        trainer = Trainer(
            agent=make_agent(config, training_envs, device),
            envs=training_envs,
            replay=make_replay(config, training_envs, device),
            schedule=schedule,
            logger=logger,
            evaluate=evaluator,
            save=saver,
            save_failed=lambda: saver.failed,
            stop=stop,
            generator=make_generator(config.seed, "warm-up"),
            device=device,
            on_step=lambda progress: display.advance_to(progress.env_steps, progress.updates),
        )
        if state is not None:
            restore(trainer, state, run)
            tell_differences(state, run, device, trainer.compiles)
            display.advance_to(trainer.progress.env_steps, trainer.progress.updates)
            state = None  # its arrays are views of a file, whose space a later save is to free
        run.keep_changes()
        try:
            finished = trainer.run()
        except NonFiniteError as fault:
            raise saver.store_fault(fault, trainer.state_dict()) from fault
        display.close()  # what is said from here on is not to be pushed away by it
        if not finished and saver.failed:
            _messages.warning(
                "stopped, but the last save failed: --resume goes on from an earlier one"
            )
        elif not finished:
            _messages.info("stopped; to go on: --resume --run-dir %s", run.path)
        elif evaluation := trainer.evaluation or evaluator(trainer.agent):
            # Without one of this process, the run had been finished before, or all but the summary.
            store_summary(run, summarize(config, evaluation, trainer.progress))
    return int(saver.failed) or stop.exit_code


def open_run(config: Config) -> RunDirectory:
    """Create the run's directory, or open the one to continue in."""
    if config.resume and config.run_dir is not None:
        return RunDirectory.resume(
            config.run_dir,
            config.to_json(),
            may_differ=MAY_DIFFER_ON_RESUME,
            defaults=Config.without_options(),
            renewed=Config.renewed,
        )
    few = len(config.benchmark) <= 3
    tasks = "+".join(config.benchmark) if few else f"{len(config.benchmark)}-tasks"
    name = f"{tasks}_seed{config.seed}"
    return RunDirectory.create(config.run_dir, config.to_json(), default_name=name)


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


def make_envs(
    config: Config,
    envs_per_task: int,
    threads: int,
    *,
    evaluation: bool = False,
    whole_episodes: bool = False,
) -> Environments:
    """Make the environments to train in, or those to evaluate in.

    Success at any step is what an evaluation looks for: its episodes end there, unless they are to
    be played to their end for the sake of their returns.
    """
    made: Environments = envs.make_vec(
        config.benchmark,
        # Evaluation plays its goals once and draws nothing: its seed does not matter.
        seed=config.seed,
        envs_per_task=envs_per_task,
        reward_version=config.reward_version,
        engine=config.engine,
        num_threads=threads,
        goals="once" if evaluation else "random",
        ends_with_success=evaluation and not whole_episodes,
        one_hot=False,  # the agent appends it, and the replay need not store it
    )
    return made


def make_agent(config: Config, environments: Environments, device: torch.device) -> SAC:
    """Make an agent that fits the environments, and let torch round as its precision asks."""
    return SAC(
        config.agent,
        num_tasks=environments.num_tasks,
        observation_size=environments.single_observation_space.shape[0],
        action_size=environments.single_action_space.shape[0],
        seed=config.seed,
        device=device,
        dtype=use_precision(resolve_precision(config.precision, device)),
    )


def make_replay(config: Config, environments: Environments, device: torch.device) -> Replay:
    """Make a replay that fits the environments."""
    return Replay(
        environments.num_tasks,
        config.replay_capacity,
        environments.single_observation_space.shape[0],
        environments.single_action_space.shape[0],
        generator=make_generator(config.seed, "replay", device),
        steps=config.agent.n_steps,
        discount=config.agent.discount,
    )


def memory_needs(config: Config) -> dict[str, int]:
    """Return the least bytes that the large things take, by the option that decides them."""
    K = len(envs.task_names(config.benchmark))
    observation_size, action_size = envs.space_sizes(config.benchmark)
    agent = config.agent
    sizes = ["critic_width", "critic_depth", "actor_width", "actor_depth", "task_embedding"]
    outputs = 1
    if agent.critic_values == "categorical":
        sizes.append("value_bins")
        outputs = agent.value_bins
    # What the backward pass needs of the forward pass: each layer's output, of both critics.
    activations = 2 * (agent.critic_width * agent.critic_depth + outputs)
    activations += agent.actor_width * agent.actor_depth + 3 * agent.task_embedding
    inputs = observation_size + agent.task_embedding
    # Gradients of hidden layers and outputs, of both critics or of the actor.
    critics = (
        2 * agent.critic_width * (inputs + agent.critic_width * (agent.critic_depth - 1) + outputs)
    )
    actor = agent.actor_width * (
        inputs + agent.actor_width * (agent.actor_depth - 1) + 2 * action_size
    )
    needs: Counter[str] = Counter()
    needs[_most_unusual(config, "replay_capacity")] += Replay.bytes_needed(
        K, config.replay_capacity, observation_size, action_size
    )
    needs[_most_unusual(config, "batch_size", *sizes)] += (
        4 * K * config.batch_size * (2 * observation_size + action_size + activations)
    )
    needs[_most_unusual(config, *sizes)] += 4 * max(
        critics * _gradients(config, K, agent.critic_width, agent.critic_weighting),
        actor * _gradients(config, K, agent.actor_width, agent.actor_weighting),
    )
    return needs


def _gradients(config: Config, K: int, width: int, weighting: str) -> int:
    """Count the gradients of four bytes a number that are held at once, at the least."""
    needs_gramian = weighting != "uniform" or config.agent.watch_conflicts
    cheaper = multiplying_out_is_cheaper(K, config.batch_size, width, width)
    if not (needs_gramian and cheaper and config.batch_size > FEW):
        return 1  # or one for each task, of layers where that is small
    return K if config.precision in ("fp32", "tf32") else max(1, K // 2)


def _most_unusual(config: Config, *names: str) -> str:
    """Return the option, with its value, that is the most times what it is by default."""
    given, usual = ({**vars(one.agent), **vars(one)} for one in (config, Config()))
    name = max(names, key=lambda name: given[name] / max(usual[name], 1))
    return f"--{name.replace('_', '-')} {given[name]}"


def make_schedule(config: Config, device: torch.device) -> Schedule:
    """Pick the schedule out of the configuration, and decide whether updates are compiled.

    Raises:
        UserError: They are to be, and what that needs is missing.
    """
    names = (schedule_field.name for schedule_field in dataclasses.fields(Schedule))
    schedule = Schedule(**{name: getattr(config, name) for name in names} | {"compile": False})
    K = len(envs.task_names(config.benchmark))
    updates = schedule.updates_after(config.total_steps, K)
    compiles = resolve_compile(config.compile, device, updates)
    return dataclasses.replace(schedule, compile=compiles)


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
            config = self._config
            # Nobody learns meanwhile.
            threads = sum(
                share_cores(
                    config.threads, config.simulation_threads, overlap=True, device=self._device
                )
            )
            self._envs = make_envs(config, config.eval_envs_per_task, threads, evaluation=True)
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
            "episodes": evaluation.num_played,
            "actions": "deterministic",
            "success": "at any step of the episode",
            "episodes_end": "by time" if evaluation.whole_episodes else "with success or by time",
            "actor": f"running average, rate {config.agent.actor_average_rate}",
            "seed": config.seed,
        },
        "versions": library_versions(),
        "machine": machine(),
    }
