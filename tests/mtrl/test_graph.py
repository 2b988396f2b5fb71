"""Several updates in one call: the same as one by one, captured or not."""

from __future__ import annotations

import contextlib
import types

import pytest
import torch
from torch import Tensor

from agents import SAC, SACConfig
from mtrl.errors import UserError
from mtrl.graph import WARM_UP, Updates
from mtrl.seeding import make_generator
from mtrl.types import Batch

pytestmark = pytest.mark.usefixtures("both_ways")

K, B, O, A = 3, 8, 5, 2  # noqa: E741

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="a CUDA graph is captured on a GPU, and there is none"
)


class Learner:
    """A SAC agent and the batches it learns from, drawn afresh each time."""

    def __init__(self, device: str, reset_every: int = 0) -> None:
        sizes = {"num_tasks": K, "observation_size": O, "action_size": A}
        config = SACConfig(
            critic_width=16,
            actor_width=16,
            normalize_rewards=True,
            task_embedding=4,
            learning_rate_half_life=5.0,
            reset_every=reset_every,
        )
        self.agent = SAC(config, **sizes, seed=0, device=device)
        self.generator = make_generator(0, "batches", device)
        self.generators = [*self.agent.generators, self.generator]

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def update(self) -> dict[str, Tensor]:
        observations, next_observations = self._normal(2, K, B, O)
        rewards, terminated = self._normal(2, K, B)
        actions = self._normal(K, B, A).tanh()
        terminated = (terminated > 1).float()
        steps = torch.ones_like(rewards)
        return self.agent.update(
            Batch(observations, actions, rewards, next_observations, terminated, steps)
        )


def _compare(
    device: str, calls: int, reset_every: int, *, compiled: bool = False, **tolerance: float
) -> None:
    together, one_by_one = (Learner(device, reset_every) for _ in range(2))
    updates = Updates(
        together.update,
        at_once=4,
        generators=together.generators,
        device=device,
        compiled=compiled,
    )
    for count in (4, 1, 9, 3, 8, 4)[:calls]:
        metrics = updates(count)
        for _ in range(count):
            expected = one_by_one.update()
        torch.testing.assert_close(metrics, expected, **tolerance)
    torch.testing.assert_close(
        together.agent.state_dict(), one_by_one.agent.state_dict(), **tolerance
    )
    assert not torch.equal(
        metrics["train/critic_loss"], torch.zeros_like(metrics["train/critic_loss"])
    )


@pytest.mark.parametrize("reset_every", [0, 11])
def test_a_call_takes_its_updates_in_order(reset_every):
    _compare("cpu", calls=4, reset_every=reset_every, rtol=0, atol=0)


@needs_cuda
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("reset_every", [0, 11])
def test_a_captured_graph_repeats_the_eager_update(reset_every, compiled):
    _compare("cuda", calls=6, reset_every=reset_every, compiled=compiled, rtol=1e-4, atol=1e-5)


@needs_cuda
def test_a_graph_is_captured_anew_after_loading():
    learner = Learner("cuda")
    updates = Updates(learner.update, at_once=2, generators=learner.generators, device="cuda")
    for _ in range(WARM_UP + 2):
        updates(2)
    saved = learner.agent.state_dict()
    learner.agent.load_state_dict(saved)
    updates.forget()
    before = learner.agent.actor.mlp.weights[0].clone()
    for _ in range(WARM_UP + 2):
        updates(2)
    assert not torch.equal(learner.agent.actor.mlp.weights[0], before)


def test_the_heap_is_seen_to_once_after_the_first_update(monkeypatch):
    events = []
    monkeypatch.setattr("mtrl.graph.prefer_large_pages_in_heap", lambda: events.append("heap"))

    def update():
        events.append("update")
        return {"number": torch.tensor(len(events))}

    updates = Updates(update, at_once=3, generators=(), device="cpu")
    assert updates(1)["number"] == 1
    assert updates(5)["number"] == 7
    assert events == ["update", "heap", *["update"] * 5]


@pytest.mark.parametrize(("compiled", "told"), [(False, True), (True, True), (True, False)])
def test_on_a_gpu_updates_are_compiled_once_warmed_up_captured_and_replayed(
    monkeypatch, compiled, told
):
    """The order of things alone: what they do only a GPU shows, in the tests above."""
    events, draws = [], torch.Generator()

    class Graph:
        def register_generator_state(self, generator):
            events.append(generator)

        def replay(self):
            events.append("replay")

    @contextlib.contextmanager
    def capturing(graph, *, stream):
        assert isinstance(graph, Graph)
        assert [stream] == streams
        events.append("capture")
        yield

    def update():
        events.append("update")
        return {"number": torch.tensor(len(events))}

    def compile_update(function, device):
        assert (function, device.type) == (update, "cuda")
        events.append("compile")
        return function

    stream = types.SimpleNamespace(wait_stream=lambda _: None)
    streams = []
    monkeypatch.setattr("mtrl.graph.Compiled", compile_update)
    monkeypatch.setattr("mtrl.graph._REGISTERS_GENERATORS", told)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: streams.append(stream) or stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    updates = Updates(update, at_once=2, generators=[draws], device="cuda", compiled=compiled)
    began = ["compile"] * compiled
    updates(5)
    assert events == began + ["update"] * 5  # two, two and one: as many calls as warm up
    events.clear()
    updates(5)
    both, one = ([*[draws] * told, "capture", *["update"] * count, "replay"] for count in (2, 1))
    assert events == [*both, "replay", *one]
    events.clear()
    assert updates(3)["number"] == 7 + 2 * told  # where the graph of one has left it
    assert events == ["replay", "replay"]
    updates.forget()
    events.clear()
    updates(1)
    assert events == [*began, "update"]


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), UserError("no linker")])
def test_what_cannot_be_compiled_is_taken_as_it_is(monkeypatch, caplog, fault):
    """Though it was rehearsed by then."""

    def fail(*_):
        raise fault

    monkeypatch.setattr("mtrl.compiled._compile", fail)
    _is_taken_uncompiled(caplog, str(fault))


def test_nor_does_it_matter_where_rehearsing_it_fails(monkeypatch, caplog):
    def fail(function, **_):
        function()
        raise RuntimeError("another torch")

    monkeypatch.setattr("mtrl.compiled.make_fx", lambda *_, **__: lambda: fail(_[0]))
    _is_taken_uncompiled(caplog, "another torch")


def _is_taken_uncompiled(caplog, reason):
    taken, plain = Learner("cpu"), Learner("cpu")
    updates = Updates(
        taken.update, at_once=2, generators=taken.generators, device="cpu", compiled=True
    )
    assert updates.compiled
    for count in (3, 2):
        metrics = updates(count)
    assert not updates.compiled
    for _ in range(5):
        expected = plain.update()
    torch.testing.assert_close(metrics, expected, rtol=0, atol=0)
    torch.testing.assert_close(taken.agent.state_dict(), plain.agent.state_dict(), rtol=0, atol=0)
    (message,) = [record.message for record in caplog.records if record.name == "mtrl"]
    assert "uncompiled" in message
    assert reason in message
