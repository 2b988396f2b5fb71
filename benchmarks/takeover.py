"""What would it take? Let a trained agent act, take its hand for a while, and tell what happens.

    python scripts/train_mt10.py --benchmark drawer-open-v3 --run-dir runs/drawer
    python benchmarks/takeover.py runs/drawer --motion 0 -1 -0.3

For a run of a single task. Where its object is, as observed, is followed from the takeover on.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table

from envs import task_names
from mtrl.checkpoint import load_latest
from mtrl.run_directory import RunDirectory
from scripts.config import Config
from scripts.resuming import restore
from scripts.training import make_agent, make_envs


@dataclass(frozen=True)
class Options:
    """Which run of a single task, and how to move its hand."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's directory."""
    motion: tuple[float, float, float]
    """The first three components of the action; the agent keeps the gripper."""
    after: int = 150
    """Steps the agent acts alone."""
    steps: int = 50
    """Steps its hand is moved."""
    envs: int = 5
    """Environments, each with a goal of its own; must divide 50."""


def main() -> None:
    """Play, and print rewards and the object's way."""
    options = tyro.cli(Options)
    run = RunDirectory.open_existing(options.run)
    config = Config.from_json(run.config)
    if len(task_names(config.benchmark)) != 1:
        raise SystemExit(f"{options.run} has learned several tasks: give a run of one")
    loaded = load_latest(run.checkpoints_path, run=run.id, only=("agent",))
    title = f"{options.run}: {options.motion}"
    table = Table("step", "reward", "way of the object, cm", title=title)
    with closing(
        make_envs(config, options.envs, 1, evaluation=True, whole_episodes=True)
    ) as environments:
        agent = make_agent(config, environments, torch.device("cpu"))
        restore(agent, loaded.state["agent"], run)
        seen = environments.reset()[0]
        for step in range(options.after + options.steps):
            observations = torch.as_tensor(seen, dtype=torch.float32)[None]
            actions = agent.act(observations, deterministic=True)[0]
            if step == options.after:
                before = seen[:, 4:7].copy()
            if step >= options.after:
                actions[:, :3] = torch.tensor(options.motion)
            environments.send(actions.numpy())
            seen, rewards, *_ = environments.recv()
            if step >= options.after and (step + 1 - options.after) % 5 == 0:
                way = 100 * ((seen[:, 4:7] - before) ** 2).sum(axis=1) ** 0.5
                cells = (" ".join(f"{value:.1f}" for value in values) for values in (rewards, way))
                table.add_row(str(step + 1 - options.after), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
