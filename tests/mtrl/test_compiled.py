"""A compiled update is the update, and compiling it changes nothing."""

from __future__ import annotations

import logging
import sys
import types

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agents import SAC, SACConfig
from mtrl.amx import instructions
from mtrl.compiled import WORTH_COMPILING, Compiled, compiler_version, resolve_compile
from mtrl.errors import UserError
from mtrl.seeding import make_generator
from mtrl.state_tree import fingerprint
from mtrl.types import Batch

# Every step of torch's compiler is told to this logger, and pytest keeps it all.
logging.getLogger("torch.__trace").setLevel(logging.WARNING)

K, B, O, A = 3, 8, 5, 2  # noqa: E741
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MANY = WORTH_COMPILING


_pickles = None


def _note_pickles(event, _):
    if event == "pickle.find_class" and _pickles is not None:
        _pickles.append(event)


sys.addaudithook(_note_pickles)  # which cannot be taken back


@pytest.fixture
def unpickled():
    """What is unpickled during a test."""
    global _pickles
    _pickles = []
    yield _pickles
    _pickles = None


class Learner:
    """A SAC agent and the batches it learns from, drawn afresh each time."""

    def __init__(self, dtype=torch.float32, **options):
        sizes = {"critic_width": 16, "actor_width": 16, "critic_depth": 1, "actor_depth": 1}
        config = SACConfig(**sizes | options)
        self.agent = SAC(
            config, num_tasks=K, observation_size=O, action_size=A, seed=0, dtype=dtype
        )
        self.generator = make_generator(0, "batches")
        self.poison = torch.zeros(())

    def update(self):
        observations, following = self._normal(2, K, B, O)
        rewards, ends = self._normal(2, K, B)
        rewards[1] += self.poison
        actions = self._normal(K, B, A).tanh()
        batch = Batch(
            observations, actions, rewards, following, (ends > 1).float(), rewards * 0 + 1
        )
        return self.agent.update(batch)

    def _normal(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def state(self):
        return {**self.agent.state_dict(), "batches": self.generator.get_state()}


@pytest.mark.parametrize(
    "options",
    [
        {
            "normalize_rewards": True,
            "learning_rate_half_life": 5.0,
            "reset_every": 11,
            "task_embedding": 4,
        },
        {
            "critic_depth": 3,
            "residual": True,
            "critic_values": "categorical",
            "reset_every": 11,
            "critic_weighting": "uniform",
            "actor_weighting": "uniform",
            "watch_conflicts": False,
        },
    ],
    ids=["many", "deep"],
)
def test_a_compiled_update_is_the_update(options, unpickled):
    """And compiling takes no step, draws nothing and unpickles nothing, however often."""
    Learner(**options).update()  # Numba, which keeps an index of kernels as pickles, is trusted
    unpickled.clear()
    compiled, plain = Learner(**options), Learner(**options)
    before = fingerprint(compiled.state())
    updates = Compiled(compiled.update)
    assert fingerprint(compiled.state()) == before
    assert not unpickled
    for number in range(15):
        for learner in (compiled, plain):
            learner.poison.fill_(torch.nan if number == 6 else 0)  # that step is left out
        metrics, expected = updates(), plain.update()
        torch.testing.assert_close(metrics, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert updates._function.is_complete
    assert metrics["gradients/critic/skipped"] == 1
    torch.testing.assert_close(compiled.state(), plain.state(), rtol=1e-4, atol=1e-5)


NORM = {"critic_depth": 2, "layer_norm": True}
RESIDUAL = {"critic_depth": 3, "residual": True, "task_embedding": 4}

needs_tiles = pytest.mark.skipif(not instructions.available(), reason="the processor has no tiles")


@pytest.mark.parametrize(
    ("options", "has_tiles"),
    [
        (NORM, False),
        pytest.param(NORM, True, marks=needs_tiles),
        pytest.param(RESIDUAL, True, marks=needs_tiles),
    ],
    ids=["norm", "norm in tiles", "residual in tiles"],
)
def test_in_bf16_it_is_the_update_to_the_rounding_of_bf16(options, has_tiles, monkeypatch):
    monkeypatch.setattr("mtrl.amx.instructions.available", lambda: has_tiles)
    # As in large updates: rows of zeros are left out, errors added up in a call of their own, and
    # what has one column is multiplied in one.
    for name in ("products.LARGE", "products.LARGE_IF_THIN", "activation.LARGE"):
        monkeypatch.setattr(f"mtrl.{name}", 0)
    compiled, plain, exact = (
        Learner(dtype, **options) for dtype in (torch.bfloat16, torch.bfloat16, torch.float32)
    )
    updates = Compiled(compiled.update)
    for _ in range(3):
        metrics, expected, in_fp32 = updates(), plain.update(), exact.update()
    for name in ("train/critic_loss", "train/actor_loss", "gradients/critic/norm"):
        torch.testing.assert_close(metrics[name], expected[name], rtol=0.03, atol=0.01)
        torch.testing.assert_close(metrics[name], in_fp32[name], rtol=0.05, atol=0.02)
    assert all(value.dtype == torch.float32 for value in metrics.values())
    assert updates._function.is_complete


def test_operations_of_ours_are_called_straight():
    class Watch(TorchDispatchMode):
        seen: list[str] = []  # noqa: RUF012 - of one test

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(str(func))
            return func(*args, **kwargs or {})

    updates = Compiled(Learner(critic_weighting="pcgrad").update)
    updates()
    with Watch() as watch:
        updates()
    assert any(name.startswith("aten.") for name in watch.seen)
    assert not [name for name in watch.seen if name.startswith("mtrl.")]


def test_what_is_not_drawn_anew_from_a_generator_is_refused():
    generator, kept = make_generator(0, "draws"), torch.zeros(3)

    def from_nowhere():
        return {"drawn": torch.rand(3)}

    def in_place():
        return {"drawn": kept.normal_(generator=generator) + 0}

    for update in (from_nowhere, in_place):
        with pytest.raises(ValueError, match=r"draw new tensors, from a `generator`"):
            Compiled(update)


def test_small_state_is_read_anew_in_each_call():
    """What is compiled in as a constant stays what it was."""
    scalar, vector, total = torch.tensor(1.0), torch.ones(3), torch.zeros(1)

    def update():
        total.add_(scalar * vector.sum())
        return {"total": total.clone()}

    compiled = Compiled(update)
    assert compiled()["total"] == 3
    scalar.fill_(2)
    vector[0] = 5
    assert compiled()["total"] == 3 + 2 * 7
    assert total == 17


@pytest.fixture
def asked_anew():
    """Forget which compiler was found, before and after."""
    compiler_version.cache_clear()
    yield
    compiler_version.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_for_a_gpu_it_needs_triton(monkeypatch):
    monkeypatch.setattr("mtrl.dispatch.triton_works", lambda: False)
    with pytest.raises(UserError, match=r"Triton.*C compiler.*--compile off"):
        compiler_version(torch.device("cuda"))
    monkeypatch.setattr("mtrl.dispatch.triton_works", lambda: True)
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__="3.9"))
    assert compiler_version(torch.device("cuda")) == "Triton 3.9"


@pytest.mark.usefixtures("asked_anew")
def test_what_was_found_stands(monkeypatch):
    found = compiler_version(CPU)
    monkeypatch.setattr("mtrl.compiled._run", None)  # as where the disk is full by now
    assert compiler_version(CPU) == found


@pytest.mark.usefixtures("asked_anew")
def test_a_compiler_of_torch_that_is_another_is_named(monkeypatch):
    def fail():
        raise AttributeError("no such thing")

    monkeypatch.setattr("mtrl.compiled._torch_compiler", fail)
    with pytest.raises(UserError, match=r"torch's compiler fails \(no such thing\).*--compile off"):
        compiler_version(CPU)
    assert not resolve_compile("auto", CPU, MANY)


@pytest.mark.usefixtures("asked_anew")
def test_without_a_compiler_there_is_a_remedy(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    compiler_version(cpu)
    compiler_version.cache_clear()
    nothing = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with nothing, pytest.raises(UserError, match=r"C\+\+.*--compile off"):
        compiler_version(cpu)
    broken = tmp_path / "g++"  # as where there are no headers
    broken.write_text(
        "#!/bin/sh\n[ $1 = --version ] && exit\necho fatal error: none such >&2; exit 1"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    broken = torch._inductor.config.patch({"cpp.cxx": (str(broken),)})
    with broken, pytest.raises(UserError, match=r"fatal error: none such.*--compile off"):
        compiler_version(cpu)


@pytest.mark.parametrize(
    ("choice", "device", "updates", "compiles"),
    [
        *[("auto", CPU, MANY, True), ("auto", CPU, MANY - 1, False), ("auto", CUDA, MANY, False)],
        *[("on", CPU, 0, True), ("off", CPU, MANY, False), ("off", CUDA, MANY, False)],
    ],
)
def test_of_itself_it_compiles_on_a_cpu_what_is_worth_it(choice, device, updates, compiles):
    assert resolve_compile(choice, device, updates) is compiles


@pytest.mark.usefixtures("asked_anew")
def test_of_itself_it_goes_without_a_compiler_and_asked_to_it_does_not(caplog):
    caplog.set_level(logging.INFO, "mtrl")
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert not resolve_compile("auto", CPU, MANY)
        assert "uncompiled" in caplog.text
        assert "install g++" in caplog.text
        with pytest.raises(UserError, match=r"C\+\+.*--compile off"):
            resolve_compile("on", CPU, MANY)
        assert not resolve_compile("off", CPU, MANY)
