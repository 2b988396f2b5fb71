"""docs/metrics.md against what is logged: neither has a name that the other lacks."""

import json
import re
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from agents import SAC, SACConfig
from mtrl.episodes import EpisodeTracker
from mtrl.evaluate import Evaluation
from mtrl.types import Batch

DOCUMENT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
CELLS = [line.strip("| ").split(" | ") for line in DOCUMENT.splitlines() if line.startswith("| `")]
DESCRIBED = [(name, cells) for cells in CELLS for name in re.findall(r"`(.+?)`", cells[0])]
WHEN = {name: cells[-1] for name, cells in DESCRIBED}
DROPPED = "train/dropped_episodes/TASK"  # which no small run has
SMALL = {"critic_width": 4, "critic_depth": 1, "actor_width": 4, "actor_depth": 1}
# Every choice and switch of the agent, one at a time, and its numbers that are 0 for "none".
CHOICES = [
    {name: value}
    for name, hint in get_type_hints(SACConfig).items()
    for value in ((False, True) if hint is bool else get_args(hint))
]
NUMBERS = {
    **{"task_embedding": 2, "n_steps": 3, "learning_rate_half_life": 9.0, "reset_every": 1},
    **{"exploration_correlation": 0.5, "gradnorm_actor_alpha": 0.5, "actor_average_rate": 0.1},
}


def generic(names):
    return {re.sub(r"/toy-\w+$", "/TASK", name) for name in names}


def updated(**options):
    """Update an agent of two tasks, and return the names of its metrics."""
    config = SACConfig(**SMALL | options)
    agent = SAC(config, num_tasks=2, observation_size=2, action_size=2, seed=0)
    pairs, ones = torch.rand(2, 4, 2), torch.ones(2, 4)
    for _ in range(2):  # the second may begin with a reset
        metrics = agent.update(Batch(pairs, pairs, ones, pairs, 0 * ones, ones))
    return {f"{name}/TASK" if value.ndim else name for name, value in metrics.items()}


def test_each_name_is_described_once_and_in_full():
    assert len(WHEN) == len(DESCRIBED)
    assert all(len(cells) == 5 and all(cells) for cells in CELLS)
    groups = "|".join({name.partition("/")[0] for name in WHEN if "/" in name})
    named = set(re.findall(rf"`((?:{groups})/[\w/]+)`", DOCUMENT))
    assert named - {"train/return/reach-v3"} <= WHEN.keys()  # an example


def test_what_is_logged_is_described_and_what_is_described_is_logged(finished, read_metrics):
    path, _ = finished
    logged = generic(name for line in read_metrics(path) for name in line)
    logged |= generic(json.loads((path / "summary.json").read_text()))
    for options in (*CHOICES, NUMBERS):
        logged |= updated(**options)
    tracker = EpisodeTracker(("toy-reach",), envs_per_task=1)
    tracker.add(np.zeros(1), np.zeros(1), np.array([False]), broken=np.array([True]))
    logged |= generic(tracker.pop_metrics())
    logged |= generic(Evaluation(["toy-reach"], np.ones((1, 1)), np.ones((1, 1))).metrics())
    assert logged == WHEN.keys()


def test_lines_hold_what_they_are_said_to(finished, read_metrics):
    lines = [generic(line) for line in read_metrics(finished[0])]
    always = {name for name, when in WHEN.items() if when == "every line"}
    every = {name for name, when in WHEN.items() if when == "every training line"}
    training, others = [[x for x in lines if bool(x & every) == is_so] for is_so in (True, False)]
    assert set.intersection(*lines) == always
    assert set.intersection(*training) == always | every
    for kind, of_kind in ("training", training), ("evaluation", others):
        may = {name for name, when in WHEN.items() if f"{kind} line" in when} - {DROPPED}
        assert set.union(*of_kind) == always | may


@pytest.mark.parametrize("network", ["critic", "actor"])
def test_the_gramian_decides_about_what_is_said_to_need_it(network):
    bare = updated(watch_conflicts=False, **{f"{network}_weighting": "uniform"})
    need = {name for name, when in WHEN.items() if when.endswith("if the Gramian is found")}
    assert updated() - bare == {name for name in need if f"/{network}/" in name}
    assert updated() == updated(**{f"{network}_weighting": "uniform"})
