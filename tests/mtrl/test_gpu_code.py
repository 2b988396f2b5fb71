"""What torch's compiler writes of an update for a GPU is the update; no GPU is needed to see it."""

from __future__ import annotations

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

import gpu_code
from gpu_code import GPUCode, writing_for_a_gpu

pytestmark = [
    # Interpreted, kernels compute with NumPy, which warns of what is not looked at afterwards.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="kernels are interpreted where there is no GPU"
    ),
]

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

    def update(self):
        metrics = self.agent.update(self.replay.sample(self._batch_size))
        self._guard.update(metrics)
        return metrics


def write(learner: Learner, **how) -> tuple[Compiled, GPUCode]:
    with dispatch.as_on_a_gpu(), writing_for_a_gpu(**how) as written:
        return Compiled(learner.update, "cuda"), *written


@pytest.mark.parametrize(
    ("options", "backwards"),
    [
        ({}, False),
        ({}, True),
        ({"layer_norm": True, "critic_values": "categorical", "value_bins": 11}, True),
        ({"task_embedding": 4, "normalize_rewards": True, "reset_every": 2}, True),
        ({"learning_rate_half_life": 2.0, "batch_size": 64}, True),
        ({"critic_weighting": "uniform", "actor_weighting": "uniform"}, True),
    ],
)
def test_it_is_the_update(options, backwards):
    """Also where the programs of a kernel run the other way round: none waits for another."""
    written, eager = Learner(**options), Learner(**options)
    compiled, code = write(written, backwards=backwards)
    assert not any("tl.atomic" in kernel.source for kernel in code.kernels.values())
    with dispatch.as_on_a_gpu():
        for _ in range(3):
            actual, expected = compiled(), eager.update()
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        written.agent.state_dict(), eager.agent.state_dict(), rtol=1e-4, atol=1e-5
    )
    assert written.agent.critic_optimizer.steps == (1 if options.get("reset_every") else 3)


def test_in_bf16_it_is_the_update_to_the_rounding_of_bf16():
    options = {"dtype": torch.bfloat16, "residual": True, "critic_width": 32, "critic_depth": 3}
    written, eager = Learner(**options), Learner(**options)
    compiled, code = write(written, backwards=True)
    assert any("*bf16" in kernel.source for kernel in code.kernels.values())
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
    assert launches.total() < 150  # of three hundred
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
