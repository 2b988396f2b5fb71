"""The multi-task optimizer against plain torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl.gradients import Tape
from mtrl.layers import Layer, chain
from mtrl.optimizer import MultiTaskOptimizer, total_norm
from mtrl.types import State, Weighting
from mtrl.weighting import Uniform, make_weighting

K, B, I, D = 3, 8, 4, 2  # noqa: E741


class Fixed(Uniform):
    """Weights that are given."""

    def __init__(self, *weights: float) -> None:
        self.weights = torch.tensor(weights)

    def __call__(self, gramian: Tensor, losses: Tensor) -> Tensor:
        self.seen = losses, gramian
        return self.weights


class Affine(nn.Module):
    """The least that shares parameters between tasks."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(1, I, D, generator=generator))
        self.bias = nn.Parameter(torch.randn(1, 1, D, generator=generator))

    def forward(self, inputs: Tensor, tape: Tape | None = None) -> Tensor:
        if tape is None:  # for an ordinary backward pass
            return inputs @ self.weight[0] + self.bias[0]
        return chain(inputs[None], [Layer(self.weight, self.bias)], tape=tape)[0]


def _data(step: int) -> Tensor:
    return torch.randn(K, B, I, generator=torch.Generator().manual_seed(step))


def _losses(outputs: Tensor) -> Tensor:
    scales = torch.tensor([0.1, 1.0, 30.0])
    return scales * (outputs - 1).square().mean(dim=(1, 2))


def _optimizer(weighting: Weighting | None = None, **options: Any) -> MultiTaskOptimizer:
    options = {"learning_rate": 1e-2} | options
    return MultiTaskOptimizer(Affine(), weighting or Uniform(), **options)


def _step(optimizer: MultiTaskOptimizer, data: Tensor) -> dict[str, Tensor]:
    tape = Tape()
    return optimizer.step(_losses(optimizer.module(data, tape)), tape)


def _snapshot(optimizer: MultiTaskOptimizer) -> State:
    return copy.deepcopy(
        {"module": optimizer.module.state_dict(), "optimizer": optimizer.state_dict()}
    )


def _restore(optimizer: MultiTaskOptimizer, snapshot: State) -> None:
    optimizer.module.load_state_dict(snapshot["module"])
    optimizer.load_state_dict(snapshot["optimizer"])


def _assert_identical(actual: State, expected: State) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("max_norm", [0.5, 1e9, float("inf")])
def test_weighted_steps_are_adams_on_the_weighted_loss(max_norm):
    weights = torch.tensor([0.2, 2.0, 0.8])
    optimizer = _optimizer(Fixed(*weights), max_norm=max_norm, epsilon=1e-4)
    plain = Affine()
    adam = torch.optim.Adam(plain.parameters(), lr=1e-2, eps=1e-4)
    for step in range(20):
        _step(optimizer, _data(step))
        adam.zero_grad()
        (weights * _losses(plain(_data(step)))).sum().backward()
        nn.utils.clip_grad_norm_(plain.parameters(), max_norm)
        adam.step()
        torch.testing.assert_close(
            dict(optimizer.module.named_parameters()),
            dict(plain.named_parameters()),
            rtol=1e-5,
            atol=1e-6,
        )


def test_learning_rates_halve():
    optimizer = _optimizer(half_life=7.0)
    plain = Affine()
    adam = torch.optim.Adam(plain.parameters(), lr=1e-2, eps=1e-5)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 0.5 ** (step / 7))
    for step in range(20):
        assert optimizer.steps == step
        _step(optimizer, _data(step))
        adam.zero_grad()
        _losses(plain(_data(step))).mean().backward()
        adam.step()
        schedule.step()
        expected = dict(plain.named_parameters())
        actual = dict(optimizer.module.named_parameters())
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_steps_left_out_halve_no_learning_rate():
    one, other = _optimizer(half_life=2.0), _optimizer(half_life=2.0)
    for step in range(4):
        _step(one, _data(step))
        _step(other, _data(step) * torch.nan)
        _step(other, _data(step))
    _assert_identical(one.module.state_dict(), other.module.state_dict())


def test_an_optimizer_that_was_reset_is_as_good_as_new():
    used, new = _optimizer(half_life=5.0), _optimizer(half_life=5.0)
    initial = {name: value.detach().clone() for name, value in used.module.named_parameters()}
    for step in range(3):
        _step(used, _data(100 + step))
    before = _snapshot(used)
    used.reset(initial, torch.tensor(False))
    _assert_identical(_snapshot(used), before)
    used.reset(initial, torch.tensor(True))
    _assert_identical(_snapshot(used), _snapshot(new))
    for step in range(3):
        _step(used, _data(step))
        _step(new, _data(step))
    _assert_identical(_snapshot(used), _snapshot(new))


def test_weighting_sees_the_losses_or_the_given_rates_and_the_gramian():
    weighting = Fixed(1.0, 1.0, 1.0)
    optimizer = _optimizer(weighting)
    plain = copy.deepcopy(optimizer.module)
    rows = [
        torch.autograd.grad(loss, tuple(plain.parameters()), retain_graph=True)
        for loss in _losses(plain(_data(0)))
    ]
    J = torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])
    tape = Tape()
    losses = _losses(optimizer.module(_data(0), tape))
    optimizer.step(losses, tape)
    torch.testing.assert_close(weighting.seen[0], losses.detach())
    assert not weighting.seen[0].requires_grad
    torch.testing.assert_close(weighting.seen[1], J @ J.T)

    rates = torch.tensor([3.0, 2.0, 1.0], requires_grad=True)
    tape = Tape()
    losses = _losses(optimizer.module(_data(0), tape))
    optimizer.step(losses, tape, rates=rates)
    assert torch.equal(weighting.seen[0], rates)
    assert not weighting.seen[0].requires_grad


def test_metrics():
    metrics = _step(_optimizer(Fixed(1.0, 2.0, 3.0)), _data(0))
    assert set(metrics) == {
        *("weights", "skipped", "norm", "conflict_rate", "cosine_min", "total_norm")
    }
    assert metrics["weights"].tolist() == [1, 2, 3]
    assert metrics["skipped"] == 0
    assert metrics["norm"].shape == (K,)


def test_uniform_finds_no_gramian_unless_conflicts_are_watched():
    watched, bare = _optimizer(), _optimizer(watch_conflicts=False)
    for step in range(3):
        assert set(_step(bare, _data(step))) == {"weights", "skipped", "total_norm"}
        _step(watched, _data(step))
    torch.testing.assert_close(bare.module.state_dict(), watched.module.state_dict())
    broken = _data(3)
    broken[0, 0, 0] = float("nan")
    metrics = _step(bare, broken)
    assert metrics["skipped"] == 1
    assert not metrics["total_norm"].isfinite()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("first_steps", [0, 3])
def test_step_that_is_not_finite_leaves_every_bit(value, first_steps):
    optimizer = _optimizer(max_norm=1.0)
    for step in range(first_steps):
        _step(optimizer, _data(step))
    before = _snapshot(optimizer)
    broken = _data(first_steps)
    broken[1, 2, 3] = value
    assert _step(optimizer, broken)["skipped"] == 1
    after = _snapshot(optimizer)
    _assert_identical(after["module"], before["module"])
    before["optimizer"]["skipped"] += 1  # all that may change
    if first_steps:
        _assert_identical(after["optimizer"], before["optimizer"])

    undisturbed = _optimizer(max_norm=1.0)
    _restore(undisturbed, before)
    for step in range(5):
        assert _step(optimizer, _data(100 + step))["skipped"] == 1
        _step(undisturbed, _data(100 + step))
    _assert_identical(_snapshot(optimizer), _snapshot(undisturbed))


def test_weights_that_are_not_finite_leave_every_bit():
    optimizer = _optimizer(Fixed(1.0, float("nan"), 1.0))
    before = copy.deepcopy(optimizer.module.state_dict())
    assert [_step(optimizer, _data(step))["skipped"] for step in range(3)] == [1, 2, 3]
    _assert_identical(optimizer.module.state_dict(), before)


@pytest.mark.parametrize("max_norm", [1.0, float("inf")])
def test_weighted_gradients_that_overflow_do_no_harm(max_norm):
    optimizer = _optimizer(Fixed(9.0, 9.0, 9.0), max_norm=max_norm)
    tape = Tape()
    outputs = optimizer.module(_data(0).abs(), tape)
    metrics = optimizer.step(4e18 * outputs.mean(dim=(1, 2)), tape)
    assert metrics["norm"].isfinite().all()
    assert all(parameter.isfinite().all() for parameter in optimizer.module.parameters())


def test_clipped_gradient_is_as_long_as_allowed():
    # Adam's first moment after one step is a tenth of the gradient it was given.
    optimizer = _optimizer(Fixed(1.0, 1.0, 1.0), max_norm=0.25)
    _step(optimizer, _data(0))
    moments = [state["exp_avg"] for state in optimizer.state_dict()["adam"].values()]
    length = torch.cat([moment.flatten() for moment in moments]).norm() / 0.1
    assert length == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("first_steps", [0, 5])
def test_state_continues_bit_for_bit(first_steps):
    def build(seed: int) -> MultiTaskOptimizer:
        generator = torch.Generator().manual_seed(seed)
        return _optimizer(make_weighting("gradnorm+pcgrad", K, generator=generator))

    optimizer = build(0)
    for step in range(first_steps):
        _step(optimizer, _data(step))
    saved = _snapshot(optimizer)
    resumed = build(1)
    _step(resumed, _data(50))
    _restore(resumed, saved)
    for step in range(5):
        expected, actual = _step(optimizer, _data(100 + step)), _step(resumed, _data(100 + step))
        _assert_identical(actual, expected)
    _assert_identical(_snapshot(resumed), _snapshot(optimizer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_norm_of_many_numbers(dtype):
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator) for shape in [(3, 50, 70), (5000,), ()]]
    gradients = [each.to(dtype) for each in (gradients[0].mT, *gradients[1:])]
    expected = torch.cat([each.double().flatten() for each in gradients]).norm()
    rounding = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(total_norm(gradients).double(), expected, rtol=rounding, atol=0)
    gradients[1][4321] = torch.inf
    assert total_norm(gradients).isinf()
    assert total_norm([]) == 0
