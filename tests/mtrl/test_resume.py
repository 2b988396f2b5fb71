"""A training that was stopped, anywhere, ends with the bytes of one that was not."""

from __future__ import annotations

import dataclasses
import gc
import random
from pathlib import Path

import pytest
import torch

import envs
from agents import SAC, SACConfig
from mtrl.checkpoint import load_latest, save_checkpoint
from mtrl.evaluate import evaluate
from mtrl.replay import Replay
from mtrl.seeding import make_generator, restore_generator
from mtrl.state_tree import fingerprint
from mtrl.train import Schedule, Trainer

WEIGHTINGS = ("uniform", "pcgrad", "gradnorm", "gradnorm+pcgrad")
SCHEDULE = Schedule(
    total_steps=400,
    warmup_steps=48,
    batch_size=4,
    update_ratio=0.29,
    log_every=56,
    eval_every=160,
    checkpoint_every=10**9,
)


class Lines(list):
    """A logger that is a list; its lines survive as those of a file do."""

    def log(self, metrics):
        self.append({k: v for k, v in metrics.items() if not k.startswith("time/")})

    def close(self):
        pass


def make_trainer(lines, directory, *, tasks, weighting, schedule, stop, threads=1, device="cpu"):
    make = {"envs_per_task": 2, "one_hot": False, "num_threads": threads}
    training = envs.make_vec(tasks, seed=1, max_episode_steps=7, **make)
    evaluation = envs.make_vec(
        tasks, seed=0, max_episode_steps=2, goals="sequential", **make | {"envs_per_task": 25}
    )
    (O,), (A,) = training.single_observation_space.shape, training.single_action_space.shape  # noqa: E741
    config = SACConfig(
        critic_weighting=weighting,
        actor_weighting=weighting,
        gradnorm_actor_alpha=0.5,
        exploration_correlation=0.8,
        actor_average_rate=0.1,
        n_steps=3,
        **dict.fromkeys(("critic_width", "actor_width"), 8),
        **dict.fromkeys(("critic_depth", "actor_depth"), 1),
    )
    sizes = {"num_tasks": training.num_tasks, "observation_size": O, "action_size": A}
    return Trainer(
        agent=SAC(config, seed=1, device=device, **sizes),
        envs=training,
        # Smaller than what is seen, so that the ring goes round.
        replay=Replay(
            training.num_tasks,
            60,
            O,
            A,
            generator=make_generator(1, "replay", device),
            steps=config.n_steps,
            discount=config.discount,
        ),
        schedule=schedule,
        logger=lines,
        evaluate=lambda agent: evaluate(agent, evaluation, device=device),
        save=lambda state, env_steps: save_checkpoint(
            directory, {**state, "lines": len(lines)}, env_steps=env_steps
        ),
        stop=stop,
        generator=make_generator(1, "warm-up"),
        device=device,
    )


def train(directory, stops=(), **options):
    """Train to the end, in a new trainer after each stop; return a digest and the lines."""
    lines = Lines()
    for stop_at in (*stops, None):
        trainer = make_trainer(
            lines,
            directory,
            stop=lambda stop_at=stop_at: (
                stop_at is not None and trainer.progress.env_steps >= stop_at  # noqa: B023
            ),
            **options,
        )
        state = load_latest(directory).state if directory.exists() else None
        del lines[state["lines"] if state else 0 :]
        if state:
            trainer.load_state_dict(state)
        trainer.run()
        if stop_at is not None:  # what a crash after the last save would leave behind
            lines.log({"progress/env_steps": stop_at + 1})
        trainer.envs.close()
    state = trainer.state_dict()
    del state["progress"]["seconds"]
    return fingerprint(state), lines


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_stopped_anywhere_a_run_ends_with_the_same_bytes(tmp_path, weighting, overlap):
    options = {
        "tasks": "toy",
        "weighting": weighting,
        "schedule": dataclasses.replace(SCHEDULE, overlap=overlap),
    }
    whole = train(tmp_path / "whole", **options)
    assert len({row["progress/env_steps"] for row in whole[1]}) == 10
    stops = sorted(random.Random(f"{weighting} {overlap}").sample(range(0, 400, 8), 4))
    assert train(tmp_path / "stopped", stops, **options) == whole, stops


def test_so_it_does_where_updates_are_compiled(tmp_path):
    """Each process compiles for itself, and not one update is taken otherwise."""
    schedule = dataclasses.replace(SCHEDULE, total_steps=120, eval_every=10**9, compile=True)
    options = {"tasks": "toy", "weighting": "uniform"}
    whole = train(tmp_path / "whole", schedule=schedule, **options)
    assert train(tmp_path / "stopped", [88], schedule=schedule, **options) == whole
    plain = dataclasses.replace(schedule, compile=False)
    assert train(tmp_path / "plain", schedule=plain, **options)[0] != whole[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_so_it_does_on_a_gpu_to_rounding(tmp_path):
    """Updates are recorded anew after each stop, and may add up in another order."""
    options = {"tasks": "toy", "weighting": "gradnorm+pcgrad", "device": "cuda"}
    options["schedule"] = dataclasses.replace(SCHEDULE, overlap=True, update_ratio=2.0)
    (_, whole), (_, stopped) = (
        train(tmp_path / name, stops, **options) for name, stops in (("a", ()), ("b", (96, 240)))
    )
    assert [list(line) for line in stopped] == [list(line) for line in whole]
    for line, expected in zip(stopped, whole, strict=True):
        assert line["progress/env_steps"] == expected["progress/env_steps"]
        assert line["progress/updates"] == expected["progress/updates"]
        if "train/critic_loss/toy-reach" in line:
            found = line["train/critic_loss/toy-reach"]
            assert found == pytest.approx(expected["train/critic_loss/toy-reach"], rel=0.05)


@pytest.mark.parametrize("overlap", [False, True])
def test_real_meta_world_stopped_anywhere_ends_with_the_same_bytes(tmp_path, overlap):
    options = {
        "tasks": ("push-v3", "drawer-open-v3"),
        "weighting": "gradnorm+pcgrad",
        "schedule": dataclasses.replace(
            SCHEDULE, total_steps=160, eval_every=10**9, overlap=overlap
        ),
    }
    whole = train(tmp_path / "whole", **options)
    stops = sorted(random.Random(overlap).sample(range(0, 160, 4), 2))
    assert train(tmp_path / "stopped", stops, **options) == whole, stops


def test_simulation_threads_change_nothing(tmp_path):
    schedule = dataclasses.replace(SCHEDULE, total_steps=80, eval_every=10**9, overlap=True)
    options = {"tasks": ("push-v3", "drawer-open-v3"), "weighting": "uniform"}
    one, three = (
        train(tmp_path / str(threads), threads=threads, schedule=schedule, **options)
        for threads in (1, 3)
    )
    assert one == three


def test_overlap_changes_what_is_known_when_learning_and_nothing_else(tmp_path):
    """The last update is made up for at the end, so that the ratio is kept to the update."""
    results = {}
    for overlap in (False, True):
        schedule = dataclasses.replace(SCHEDULE, overlap=overlap)
        results[overlap] = train(
            tmp_path / str(overlap), tasks="toy", weighting="uniform", schedule=schedule
        )
    assert results[False] != results[True]
    for _, lines in results.values():
        assert lines[-1]["progress/updates"] == (400 - 48) * 29 // 400


def test_nothing_of_a_checkpoint_stays_mapped_after_resuming(tmp_path):
    """A file that is removed while it is mapped goes on taking space."""
    directory = tmp_path / "run"
    options = {"tasks": "toy", "weighting": "uniform", "schedule": SCHEDULE}
    train(directory, **options)
    trainer = make_trainer(Lines(), directory, stop=lambda: True, **options)
    state = load_latest(directory).state
    assert is_mapped(directory)
    trainer.load_state_dict(state)
    del state
    gc.collect()
    assert not is_mapped(directory)


def is_mapped(directory):
    return str(directory) in Path("/proc/self/maps").read_text()


def test_on_another_kind_of_device_a_stream_goes_on_as_a_new_one():
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
    foreign = torch.arange(16, dtype=torch.uint8)  # a GPU's state has 16 bytes
    for generator in generators[:2]:
        restore_generator(generator, foreign)
    restore_generator(generators[2], foreign + 1)
    one, same, other = (torch.rand(4, generator=generator) for generator in generators)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
