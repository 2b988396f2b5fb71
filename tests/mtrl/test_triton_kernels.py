"""Triton's kernels against those for a CPU, on a GPU or else interpreted; and compiled for one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from agents import SAC, SACConfig
from mtrl import decompositions, dispatch  # noqa: F401 - with an operation of its own
from mtrl.metrics import conflict_metrics
from mtrl.types import Batch
from mtrl.weighting.gradnorm import GradNorm
from mtrl.weighting.pcgrad import PCGrad, project

pytest.importorskip("triton")

from mtrl import triton_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Interpreted, kernels compute with NumPy, which warns of infinities less each other.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

TASKS = (1, 2, 3, 10, 17)


def _gramian(K: int, fault: str, generator: torch.Generator) -> Tensor:
    J = torch.randn(K, 7, generator=generator, dtype=torch.float64)
    J *= torch.randn(K, 1, generator=generator, dtype=torch.float64).exp()
    if fault == "zero":
        J[0] = 0
    if fault == "nan":
        J[-1] = torch.nan
    if fault == "inf":
        J[-1] = torch.inf
    return J @ J.T


def _batch(K: int, B: int, generator: torch.Generator) -> Batch:
    """Five numbers seen, two done."""
    normal = torch.randn(4, K, B, 5, generator=generator)
    return Batch(
        observations=normal[0],
        actions=normal[1, ..., :2].tanh(),
        rewards=normal[2, ..., 0],
        next_observations=normal[3],
        terminated=torch.zeros(K, B),
        steps=torch.ones(K, B),
    )


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("K", TASKS)
@pytest.mark.parametrize("fault", ["", "zero", "nan", "inf"])
def test_projections_are_those_of_a_cpu(K, fault, generator):
    gramian = _gramian(K, fault, generator).to(torch.float32 if K % 2 else torch.float64)
    order = PCGrad(generator).draw_order(K, gramian.device)
    actual = triton_kernels.project(gramian.to(DEVICE), order.to(DEVICE)).cpu()
    torch.testing.assert_close(actual, project(gramian, order), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("K", TASKS)
@pytest.mark.parametrize("fault", ["", "zero", "nan", "inf"])
def test_conflicts_are_those_of_a_cpu(K, fault, generator):
    gramian = _gramian(K, fault, generator).float()
    expected = conflict_metrics(gramian)
    with dispatch.as_on_a_gpu():
        actual = conflict_metrics(gramian.to(DEVICE))
    actual = {name: value.cpu() for name, value in actual.items()}
    torch.testing.assert_close(actual, expected, equal_nan=True)


@pytest.mark.parametrize("K", TASKS)
@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
def test_weights_are_learned_as_on_a_cpu(K, alpha, generator):
    """Also from steps that are left out, and from losses and norms at the ends of their range."""
    expected, actual = GradNorm(K, alpha=alpha), GradNorm(K, alpha=alpha, device=DEVICE)
    faults = ("nan", "", "loss", "", "zero losses", "zero loss", "large", "zero", "overflow", "")
    for fault in faults:
        losses = torch.rand(K, generator=generator)
        gramian = _gramian(K, fault, generator).float()
        if fault == "loss":
            losses[0] = torch.nan
        if fault == "zero losses":
            losses.zero_()
        if fault == "zero loss":
            losses[0], losses[-1] = 0.0, 1.0
        gramian *= {"large": 1e30, "overflow": 1e38}.get(fault, 1.0)
        weights = expected(gramian, losses)
        with dispatch.as_on_a_gpu():
            found = actual(gramian.to(DEVICE), losses.to(DEVICE))
        torch.testing.assert_close(found.cpu(), weights)
        state = {name: tensor.cpu() for name, tensor in actual.state_dict().items()}
        torch.testing.assert_close(state, expected.state_dict(), rtol=1e-6, atol=0)
    assert actual.state_dict()["steps"] > 3
    assert K == 1 or not torch.equal(expected.weights, torch.ones(K))


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU's kernels cannot work on a CPU's numbers")
def test_an_update_on_a_gpu_is_the_update(generator, monkeypatch):
    """All that runs there, but for the GPU: torch's operations and these kernels."""
    calls: Counter[str] = Counter()

    def counted(function):
        def call(*args):
            calls[function.__name__] += 1
            return function(*args)

        return call

    for kernel in (triton_kernels.project, triton_kernels.learn, triton_kernels.summarise):
        monkeypatch.setattr(triton_kernels, kernel.__name__, counted(kernel))
    K, B = 4, 32
    config = SACConfig(critic_width=24, actor_width=24)
    sizes = {"num_tasks": K, "observation_size": 5, "action_size": 2}
    one, other = (SAC(config, **sizes, seed=0, device="cpu") for _ in range(2))
    for _ in range(3):
        batch = _batch(K, B, generator)
        expected = one.update(batch)
        with dispatch.as_on_a_gpu():
            actual = other.update(batch)
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
    assert calls == {"project": 6, "learn": 6, "summarise": 6}


@pytest.mark.skipif(DEVICE == "cuda", reason="operations are counted on a CPU")
def test_what_balancing_launches_does_not_depend_on_how_many_tasks_there_are(generator):
    """`benchmarks/launches.py` counts more closely, at real sizes."""

    class Counting(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            returned = function._schema.returns
            self.count += not any(
                one.alias_info and not one.alias_info.is_write for one in returned
            )
            return function(*args, **(kwargs or {}))

    counts = {}
    for weighting in ("uniform", "gradnorm+pcgrad"):
        for K in (3, 12):
            config = SACConfig(
                critic_weighting=weighting,
                actor_weighting=weighting,
                watch_conflicts=False,
                critic_width=24,
                actor_width=24,
            )
            sizes = {"num_tasks": K, "observation_size": 5, "action_size": 2}
            agent = SAC(config, **sizes, seed=0, device="cpu")
            batch = _batch(K, 16, generator)
            with dispatch.as_on_a_gpu():
                agent.update(batch)
                with Counting() as counting:
                    agent.update(batch)
            counts[weighting, K] = counting.count
    assert counts["uniform", 3] == counts["uniform", 12]
    assert counts["gradnorm+pcgrad", 3] == counts["gradnorm+pcgrad", 12]
    assert counts["gradnorm+pcgrad", 3] < 1.2 * counts["uniform", 3]


def test_without_them_there_is_another_way(monkeypatch, caplog):
    dispatch.triton_works.cache_clear()

    def fail(gramian):
        raise RuntimeError("what was run\nFailed to find C compiler.")

    monkeypatch.setattr(triton_kernels, "summarise", fail)
    monkeypatch.setattr(torch, "eye", lambda *_, device: torch.ones(2, 2))
    assert not dispatch.triton_works()
    assert "Triton cannot be used (Failed to find C compiler.)" in caplog.text
    monkeypatch.undo()
    dispatch.triton_works.cache_clear()


@pytest.mark.parametrize("way", [contextlib.nullcontext, dispatch.traced, dispatch.portable])
def test_a_gpu_goes_their_way_also_where_it_is_traced(way, monkeypatch):
    monkeypatch.setattr(dispatch, "triton_works", lambda: True)
    with FakeTensorMode():
        there, here = torch.empty(2, device="cuda"), torch.empty(2)
    with way():
        assert dispatch.has_triton(there) == (way is not dispatch.portable)
        assert not dispatch.has_triton(here)


def test_torch_knows_them_on_a_gpu():
    for name in ("project", "learn", "summarise", "adam"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"mtrl::{name}", "CUDA"), name


COMPILE = """
import struct
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mtrl import triton_kernels as kernels

def compile(kernel, signature, warps=1, **constants):
    signature = signature | dict.fromkeys(constants, "constexpr")
    source, target = ASTSource(kernel, signature, constants), GPUTarget("cuda", 90, 32)
    return triton.compile(source, target=target, options={"num_warps": warps}).asm

f, d, i = "*fp32", "*fp64", "i32"
project = {"gramian": f, "order": "*i64", "coefficients": d, "K": i, "M": i, "ORDERS_APART": i}
assert compile(kernels._project, project, BLOCK=64)["cubin"]
summarise = {"gramian": f, "summary": f, "K": i}
assert compile(kernels._summarise, summarise, BLOCK=16)["cubin"]
assert compile(kernels._summarise, summarise, warps=8, BLOCK=64)["cubin"]
state = ("weights", "initial_losses", "first_moment", "second_moment", "steps")
learn = dict.fromkeys(("gramian", "losses", *state), f) | {"K": i}
names = ("ALPHA", "LEARNING_RATE", "LOSS_FLOOR", "FIRST_DECAY", "SECOND_DECAY", "EPSILON")
constants = dict(zip(names, (0.12, 3e-4, 1e-3, 0.9, 0.999, 1e-12)))
code = compile(kernels._learn, learn, **constants, MINIMUM=1e-3, BLOCK=64)
for constant in constants.values():  # in double precision
    assert struct.pack(">d", constant).hex().upper() in code["ptx"].upper(), constant
"""


def test_they_compile_for_a_gpu(tmp_path):
    """An H100's instructions: what compiles them comes with Triton, and needs none."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", COMPILE], env=environment, check=True)
