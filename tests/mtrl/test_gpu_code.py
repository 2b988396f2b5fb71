"""What torch's compiler writes of an update for a GPU is the update; no GPU is needed to see it."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agents import SAC, SACConfig
from mtrl import dispatch
from mtrl.compiled import Compiled
from mtrl.guard import Guard
from mtrl.replay import Replay
from mtrl.seeding import make_generator
from mtrl.types import Batch

pytest.importorskip("triton")
if torch.cuda.is_available():  # not after the import, which other tests would notice
    pytest.skip("kernels are interpreted where there is no GPU", allow_module_level=True)

import gpu_code
from gpu_code import GPUCode, writing_for_a_gpu

# Interpreted, kernels compute with NumPy, which warns of what is not looked at afterwards.
pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning"), pytest.mark.slow]

# Every step of torch's compiler is told to this logger, and pytest keeps it all.
logging.getLogger("torch.__trace").setLevel(logging.WARNING)

K, O, A = 3, 5, 2  # noqa: E741
BOTH = "gradnorm+pcgrad"


class Learner:
    """What a training repeats: a sample, an update, the watch for broken numbers."""

    def __init__(self, batch_size: int = 8, dtype=torch.float32, **options) -> None:
        config = SACConfig(**{"critic_width": 16, "actor_width": 16} | options)
        sizes = {"num_tasks": K, "observation_size": O, "action_size": A}
        self.agent = SAC(config, **sizes, seed=0, dtype=dtype)
        self.replay = Replay(
            K, 30, O, A, generator=make_generator(0, "replay"), steps=2, discount=0.9
        )
        draw = make_generator(0, "transitions")
        for _ in range(3):
            normal = torch.randn(4, K, 3, O, generator=draw)
            actions, rewards, ends = normal[1, ..., :A].tanh(), normal[2, ..., 0], torch.zeros(K, 3)
            self.replay.add(Batch(normal[0], actions, rewards, normal[3], ends, torch.ones(K, 3)))
        self._batch_size = batch_size
        self._guard = Guard([f"task {k}" for k in range(K)], 3)
        self.poison = torch.zeros(())

    def update(self):
        batch = self.replay.sample(self._batch_size)
        batch = dataclasses.replace(batch, rewards=batch.rewards + self.poison)
        metrics = self.agent.update(batch)
        self._guard.update(metrics)
        return metrics


def write(learner: Learner) -> tuple[Compiled, GPUCode]:
    with dispatch.as_on_a_gpu(), writing_for_a_gpu() as written:
        return Compiled(learner.update, "cuda"), *written


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layer_norm": True, "critic_values": "categorical", "value_bins": 11},
        {"task_embedding": 4, "normalize_rewards": True, "reset_every": 2},
        {"learning_rate_half_life": 2.0, "batch_size": 64, "residual": True, "critic_depth": 3},
        {"critic_weighting": "uniform", "actor_weighting": "uniform", "watch_conflicts": False},
        {"critic_weighting": "pcgrad", "actor_weighting": "gradnorm", "twins": "mean"},
    ],
    ids=str,
)
def test_it_is_the_update(options):
    """Also where a step is left out, and where the programs of a kernel run the other way round."""
    written, eager = Learner(**options), Learner(**options)
    compiled, code = write(written)
    with dispatch.as_on_a_gpu():
        for poison, code.backwards in (
            (0, False),
            (0, True),
            (torch.nan, True),
            (torch.nan, False),
        ):
            written.poison.fill_(poison)
            eager.poison.fill_(poison)
            close = {"rtol": 1e-4, "atol": 1e-5, "equal_nan": True}
            torch.testing.assert_close(compiled(), eager.update(), **close)
            torch.testing.assert_close(
                written.agent.state_dict(), eager.agent.state_dict(), **close
            )
    assert written.agent.state_dict()["critic_optimizer"]["skipped"] == 2


def test_a_resumed_run_would_be_the_same():
    """Nothing is chosen by how long it takes, and sums have one order."""
    _, code = write(Learner())
    for name, kernel in code.kernels.items():
        assert len(kernel.configs) == 1, name
        assert "tl.atomic" not in kernel.source, name
        assert not name.startswith("triton_for_"), name  # see `mtrl.decompositions`


def test_in_bf16_it_is_the_update_to_the_rounding_of_bf16():
    options = {"dtype": torch.bfloat16, "residual": True, "critic_width": 32, "critic_depth": 3}
    written, eager = Learner(**options), Learner(**options)
    compiled, code = write(written)
    assert code.text.count("torch.bfloat16)") > 20  # what is allocated: products and their factors
    with dispatch.as_on_a_gpu():
        actual, expected = compiled(), eager.update()
    for name in ("train/critic_loss", "train/actor_loss", "gradients/critic/norm"):
        torch.testing.assert_close(actual[name], expected[name], rtol=3e-2, atol=1e-3)


def test_its_kernels_compile_for_a_gpu(tmp_path):
    """What compiles them for an H100 comes with Triton; see `benchmarks/launches.py` for more."""
    _, code = write(Learner())
    launches = code.launches()
    in_triton = {name for name in launches if name.startswith("triton_")}
    assert in_triton == code.kernels.keys()
    assert launches["torch.ops.mtrl.project"] == launches["torch.ops.mtrl.learn"] == 2
    assert launches.total() < 110  # of three hundred
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    sources = {name: kernel.source for name, kernel in code.kernels.items()}
    run = subprocess.run(
        [sys.executable, "-m", "gpu_code"],
        cwd=Path(gpu_code.__file__).parent,
        input=json.dumps(sources),
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 1000 * len(sources)
