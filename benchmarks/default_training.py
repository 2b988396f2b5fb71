"""A benchmark's default training in mid-run, its replay full, for other benchmarks to time."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator

import numpy as np
import torch

from mtrl.device import resolve_device, set_threads
from mtrl.replay import Replay
from mtrl.seeding import make_generator
from mtrl.train import Trainer
from mtrl.types import Batch, Environments
from scripts.config import Config
from scripts.training import make_agent, make_envs, make_replay, make_schedule


class Nowhere:
    """A logger."""

    def log(self, metrics: object) -> None:
        """Forget it."""

    def close(self) -> None:
        """Do nothing."""


@contextlib.contextmanager
def mid_run(config: Config, learning: int, simulating: int) -> Iterator[Trainer]:
    """Give a trainer that is beyond its warm-up, with so many threads for each side."""
    set_threads(learning)
    device = resolve_device(config.device)
    with contextlib.closing(make_envs(config, config.envs_per_task, simulating)) as environments:
        replay = make_replay(config, environments, device)
        fill(replay, environments)
        trainer = Trainer(
            agent=make_agent(config, environments, device),
            envs=environments,
            replay=replay,
            schedule=make_schedule(config, device),
            logger=Nowhere(),
            evaluate=lambda _: None,
            save=lambda *_: None,
            stop=lambda: False,
            generator=make_generator(0, "warm-up"),
            device=device,
        )
        progress = trainer.progress
        progress.env_steps = config.warmup_steps + environments.num_tasks * config.envs_per_task
        progress.updates = trainer.schedule.updates_after(
            progress.env_steps, environments.num_tasks
        )
        yield trainer


def seconds_per_step(trainer: Trainer, steps: int) -> float:
    """Take so many steps of all environments, with the updates due; return the seconds of one."""
    count = itertools.count()
    trainer.stop = lambda: next(count) >= steps
    begun = time.perf_counter()
    trainer.run()
    return (time.perf_counter() - begun) / steps


def fill(replay: Replay, environments: Environments) -> None:
    """Fill the ring."""
    (O,) = environments.single_observation_space.shape  # noqa: E741
    (A,) = environments.single_action_space.shape
    shape = (environments.num_tasks, environments.envs_per_task)
    seen, ended = torch.rand(*shape, O), np.zeros(shape, np.bool_)
    for _ in range(replay.capacity // environments.envs_per_task + 1):
        after = torch.rand(*shape, O)
        actions, rewards = torch.rand(*shape, A), torch.rand(shape)
        batch = Batch(seen, actions, rewards, after, torch.zeros(shape), torch.ones(shape))
        replay.add(batch, ended)
        seen = after
