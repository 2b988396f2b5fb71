"""What is the actor's running average worth? Evaluate each checkpoint's actor and its average.

    python benchmarks/averaging.py RUN...

Every checkpoint that the runs have is evaluated twice, on all goals of each task, without another
step of training: once as always, with the average, once with the actor that it is the average of.
A run keeps its newest checkpoints and its best: the best of many by the average's success, which
favours the average there. Judge by the others.
"""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tables import print_and_keep

from mtrl.checkpoint import CheckpointError, load_checkpoint
from mtrl.device import resolve_device, set_threads, share_cores
from mtrl.evaluate import evaluate
from mtrl.run_directory import RunDirectory
from scripts.config import Config
from scripts.resuming import restore
from scripts.training import make_agent, make_envs


@dataclass(frozen=True)
class Options:
    """Whose actors to evaluate."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of runs."""
    save: str = "averaging"
    """The file in benchmarks/results that the result is kept in."""


def main() -> None:
    """Evaluate and report."""
    options = tyro.cli(Options)
    rows = [row for path in options.runs for row in measure(path)]
    if not rows:
        raise SystemExit("no checkpoints in these runs: give directories of runs that have some")
    runs = " ".join(f"runs/{path.name}" for path in options.runs)
    command = f"python benchmarks/averaging.py {runs} --save {options.save}"
    print_and_keep("success of actors", rows, command=command, name=options.save)


def measure(path: Path) -> list[dict[str, object]]:
    """Evaluate the actor and the average of each checkpoint of a run."""
    run = RunDirectory.open_existing(path)
    config = Config.from_json(run.config)
    device = resolve_device(config.device)
    learning, simulating = share_cores(0, 0, overlap=False, device=device)
    set_threads(learning)
    environments = make_envs(config, config.eval_envs_per_task, simulating, evaluation=True)
    rows: list[dict[str, object]] = []
    with closing(environments):
        agent = make_agent(config, environments, device)

        def success() -> float | None:
            evaluation = evaluate(agent, environments, device=device)
            assert evaluation is not None  # nobody asked it to stop
            rate = evaluation.success_rate
            return None if rate is None else round(rate, 3)

        # By number, without what a newer checkpoint of the same step replaced.
        for directory in sorted(run.checkpoints_path.glob("step_*[0-9]")):
            try:
                loaded = load_checkpoint(directory, only=("agent",))
            except CheckpointError as error:
                print(f"skipped: {error}", file=sys.stderr)
                continue
            if loaded.label.run != run.id:
                print(f"skipped: `{directory}` belongs to another run", file=sys.stderr)
                continue
            restore(agent, loaded.state["agent"], run)
            averaged = success()
            agent.averaged_actor.load_state_dict(agent.actor.state_dict())
            row = {
                "run": path.name,
                "rate": config.agent.actor_average_rate,
                "env steps": loaded.label.env_steps,
                "average": averaged,
                "actor": success(),
            }
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    main()
