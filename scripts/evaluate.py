"""Evaluate a trained agent: all 50 goals of each task once, deterministic actions."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from mtrl.checkpoint import load_best, load_latest
from mtrl.device import resolve_device, set_threads, share_cores
from mtrl.errors import UserError
from mtrl.evaluate import Evaluation, evaluate, mean_of_played
from mtrl.files import write_json_atomic
from mtrl.progress import setup_console
from mtrl.run_directory import RunDirectory
from mtrl.train import Progress
from scripts.command_line import Imports, exit_with, import_modules, parse_options
from scripts.config import Config
from scripts.resuming import refuse_other_settings, restore
from scripts.training import make_agent, make_envs, summarize


@dataclass(frozen=True)
class Options:
    """Evaluate a run's agent; the table is stored as evaluation_<steps>.json in its directory."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's directory."""
    best: bool = False
    """The best of the checkpoints that were saved right after an evaluation, not the newest."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the agent computes."""
    imports: Imports = ()
    """Modules to import first, as they register the run's tasks."""


def main() -> int:
    """Evaluate as the command line says."""
    options = parse_options(Options)
    setup_console()
    import_modules(options.imports)
    run = RunDirectory.open_existing(options.run)
    config = dataclasses.replace(Config.from_json(run.config), device=options.device)
    device = resolve_device(config.device)
    threads = share_cores(config.threads, config.simulation_threads, overlap=False, device=device)
    set_threads(threads[0])
    load = load_best if options.best else load_latest
    checkpoint = load(run.checkpoints_path, run=run.id, only=("agent", "progress", "settings"))
    refuse_other_settings(checkpoint.state, run)
    with closing(
        make_envs(
            config, config.eval_envs_per_task, threads[1], evaluation=True, whole_episodes=True
        )
    ) as environments:
        agent = make_agent(config, environments, device)
        restore(agent, checkpoint.state["agent"], run)
        evaluation = evaluate(agent, environments, device=device)
    assert evaluation is not None  # nobody asked it to stop
    progress = Progress.from_state(checkpoint.state["progress"])
    show(evaluation, progress)
    if options.best:
        print("chosen for its success on these goals, so expect a little less of it elsewhere")
    chosen = {"chosen": "best" if options.best else "newest", "checkpoint": checkpoint.path.name}
    store(run, summarize(config, evaluation, progress) | chosen)
    return 0


def store(run: RunDirectory, summary: dict[str, object]) -> None:
    """Write the results into the run's directory.

    Raises:
        UserError: If it cannot be written.
    """
    path = run.path / f"evaluation_{summary['env_steps']}.json"
    try:
        write_json_atomic(path, summary)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): make it writable to store the table."
        ) from error
    print(f"stored in {path}")


def show(evaluation: Evaluation, progress: Progress) -> None:
    """Print the table."""
    episodes = evaluation.success.shape[1]
    table = Table(title=f"After {progress.env_steps:,} environment steps, {episodes} goals a task")
    table.add_column("task")
    table.add_column("success", justify="right")
    table.add_column("return", justify="right")
    for name, success, returns in zip(
        evaluation.task_names, evaluation.success, evaluation.returns, strict=True
    ):
        table.add_row(name, _mean(success, 2), _mean(returns, 0))
    table.add_section()
    table.add_row("mean", _mean(evaluation.success, 3), _mean(evaluation.returns, 0))
    Console().print(table)


def _mean(values: np.ndarray, digits: int) -> str:
    mean = mean_of_played(values)
    return "-" if mean is None else f"{mean:.{digits}f}"


if __name__ == "__main__":
    exit_with(main)
