"""GradNorm against its paper's loss, differentiated and descended by torch."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtrl.dispatch import portable
from mtrl.weighting import GradNorm

pytestmark = pytest.mark.usefixtures("both_ways")


def _step(gradnorm: GradNorm, losses: Tensor, norms: Tensor) -> Tensor:
    return gradnorm(norms.square().diag(), losses)


def _paper_loss(
    weights: Tensor, losses: Tensor, initial: Tensor, norms: Tensor, alpha: float
) -> Tensor:
    """Chen et al. 2018, equation 2, its target held constant."""
    weighted = weights * norms
    rates = losses / initial
    target = (weighted.mean() * (rates / rates.mean()) ** alpha).detach()
    return (weighted - target).abs().sum()


@settings(max_examples=50)
@given(
    K=st.integers(1, 8),
    alpha=st.floats(0, 3),
    steps=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_weight_gradient_is_autograds_on_the_papers_loss(K, alpha, steps, seed):
    generator = torch.Generator().manual_seed(seed)

    def positive() -> Tensor:
        return (2 * torch.randn(K, generator=generator)).exp()

    gradnorm = GradNorm(K, alpha=alpha, learning_rate=0.05)
    initial = positive()
    _step(gradnorm, initial, positive())
    for _ in range(steps):
        _step(gradnorm, positive(), positive())

    losses, norms = positive(), positive()
    weights = gradnorm.weights.clone().requires_grad_()
    _paper_loss(weights, losses, initial.clamp_min(1e-3 * initial.mean()), norms, alpha).backward()
    if K == 1:  # |w n - w n|, whose slope is any in [-n, n]
        weights.grad.zero_()
    torch.testing.assert_close(gradnorm.weight_gradient(losses, norms), weights.grad)


@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
def test_follows_the_papers_algorithm_in_plain_torch(alpha):
    """Three regressions share one matrix; Algorithm 1 with Adam on the weights, 200 steps."""
    generator = torch.Generator().manual_seed(0)
    x, *targets = (torch.randn(20, 4, generator=generator) for _ in range(4))
    scales = (0.3, 1.0, 5.0)
    W = torch.randn(4, 4, generator=generator).requires_grad_()
    w = torch.ones(3, requires_grad=True)
    adam = torch.optim.Adam([w], lr=5e-3, eps=1e-12)
    initial = None
    gradnorm = GradNorm(3, alpha=alpha, learning_rate=5e-3)
    for step in range(200):
        losses = torch.stack(
            [s * (x @ W - y).square().mean() for s, y in zip(scales, targets, strict=True)]
        )
        initial = losses.detach() if initial is None else initial
        rows = [torch.autograd.grad(loss, W, retain_graph=True)[0] for loss in losses]
        norms = torch.stack([row.norm() for row in rows])
        used = w.detach().clone()
        weights = _step(gradnorm, losses.detach(), norms)
        torch.testing.assert_close(weights, used, rtol=1e-4, atol=1e-4, msg=f"step {step}")

        combined = torch.tensordot(weights, torch.stack(rows), dims=1)
        weighted_loss = torch.autograd.grad((used * losses).sum(), W)[0]
        torch.testing.assert_close(combined, weighted_loss, rtol=1e-3, atol=1e-4)

        adam.zero_grad()
        _paper_loss(w, losses.detach(), initial, norms, alpha).backward()
        adam.step()
        with torch.no_grad():
            w *= 3 / w.sum()
            W -= 0.02 * weighted_loss
    assert (w.detach() - 1).abs().max() > 0.2  # it went somewhere


@pytest.mark.parametrize("alpha", [0.12, 3.0])
def test_weights_stay_positive_and_sum_to_the_number_of_tasks(alpha):
    generator = torch.Generator().manual_seed(0)
    gradnorm = GradNorm(5, alpha=alpha, learning_rate=0.1)
    for step in range(2000):
        scale = 10.0 ** (16 * torch.rand(2, 5, generator=generator) - 8)
        losses, norms = scale * (torch.rand(2, 5, generator=generator) > 0.2)
        if step % 50 == 0:
            losses[step // 50 % 5] = (float("nan"), float("inf"), -1.0)[step % 3]
        weights = _step(gradnorm, losses, norms)
        assert (weights > 0).all()
        assert weights.sum() == pytest.approx(5, rel=1e-5)


def test_first_weights_are_ones():
    assert torch.equal(_step(GradNorm(3), torch.rand(3), torch.rand(3)), torch.ones(3))


def test_task_that_lags_gains_weight():
    gradnorm = GradNorm(3, alpha=1.0, learning_rate=0.01)
    norms = torch.ones(3)
    _step(gradnorm, torch.tensor([1.0, 10.0, 100.0]), norms)
    for _ in range(20):
        weights = _step(gradnorm, torch.tensor([0.5, 5.0, 100.0]), norms)
    assert weights[2] > 1.1
    assert weights[0] < 1
    torch.testing.assert_close(weights[0], weights[1])


@pytest.mark.parametrize("losses", [[0.0, 5.0, 1e6], [-1.0, -3.0, 2.0]])
def test_alpha_zero_equalises_norms_whatever_the_losses(losses):
    gradnorm = GradNorm(3, alpha=0.0, learning_rate=0.005)
    norms = torch.tensor([0.5, 1.0, 4.0])
    _step(gradnorm, torch.ones(3), norms)
    for _ in range(800):
        weights = _step(gradnorm, torch.tensor(losses), norms)
    weighted = weights * norms
    assert weighted.max() / weighted.min() < 1.2


@pytest.mark.parametrize("initial", [[0.0, 1.0, 1.0], [1e-30, 1.0, 1.0], [0.0, 0.0, 0.0]])
def test_survives_initial_losses_near_zero(initial):
    gradnorm = GradNorm(3, alpha=1.5)
    norms = torch.tensor([1.0, 2.0, 3.0])
    _step(gradnorm, torch.tensor(initial), norms)
    for _ in range(50):
        weights = _step(gradnorm, torch.tensor([1.0, 1.0, 1.0]), norms)
    assert weights.isfinite().all()
    assert (weights > 0).all()


def test_survives_tasks_at_zero_loss():
    gradnorm = GradNorm(3, alpha=1.5)
    _step(gradnorm, torch.ones(3), torch.ones(3))
    for losses in ([0.0, 1.0, 1.0], [0.0, 0.0, 0.0]):
        for _ in range(50):
            weights = _step(gradnorm, torch.tensor(losses), torch.tensor([0.0, 1.0, 1.0]))
    assert weights.isfinite().all()
    assert (weights > 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["losses", "norms"])
def test_learns_nothing_from_what_is_not_finite(value, where):
    good = torch.tensor([1.0, 2.0, 3.0])
    bad = torch.tensor([1.0, value, 3.0])
    gradnorm, undisturbed = GradNorm(3, alpha=0.5), GradNorm(3, alpha=0.5)
    for step in range(6):
        if step % 2 == 0:  # also before anything was learned
            weights = _step(gradnorm, *((bad, good) if where == "losses" else (good, bad)))
            assert weights.isfinite().all()
        scale = 1 / (1 + step)
        expected = _step(undisturbed, scale * good, good.flip(0))
        assert torch.equal(_step(gradnorm, scale * good, good.flip(0)), expected)


@pytest.mark.parametrize(
    ("losses", "norms"),
    [([1e38, 1.0, 1.0], [1.0, 1.0, 1.0]), ([1.0, 1.0, 1.0], [1e30, 1.0, 1.0])],
)
def test_recovers_from_finite_numbers_whose_squares_or_ratios_are_not(losses, norms):
    gradnorm = GradNorm(3, alpha=1.0, learning_rate=0.01)
    _step(gradnorm, torch.full((3,), 1e-6), torch.ones(3))
    _step(gradnorm, torch.tensor(losses), torch.tensor(norms))
    for _ in range(50):
        weights = _step(gradnorm, torch.tensor([1e-6, 1e-6, 1e-5]), torch.ones(3))
    assert weights.isfinite().all()
    assert weights[2] > 1.1


def test_single_task_keeps_its_weight():
    gradnorm = GradNorm(1, alpha=0.5, learning_rate=0.1)
    for loss in (3.0, 0.1, 0.0, 7.0):
        assert _step(gradnorm, torch.tensor([loss]), torch.tensor([loss])).item() == 1


def test_returned_weights_are_not_changed_by_later_steps():
    gradnorm = GradNorm(2, learning_rate=0.1)
    weights = _step(gradnorm, torch.ones(2), torch.tensor([1.0, 5.0]))
    before = weights.clone()
    _step(gradnorm, torch.ones(2), torch.tensor([1.0, 5.0]))
    assert torch.equal(weights, before)


def _trajectory(gradnorm: GradNorm, seed: int, steps: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(steps, 2, 3, generator=generator)
    return torch.stack([_step(gradnorm, losses, norms) for losses, norms in inputs])


def test_state_continues_bit_for_bit_and_reset_begins_again():
    gradnorm = GradNorm(3, alpha=0.7, learning_rate=0.02)
    first = _trajectory(gradnorm, seed=0)
    state = gradnorm.state_dict()
    second = _trajectory(gradnorm, seed=1)

    resumed = GradNorm(3, alpha=0.7, learning_rate=0.02)
    _trajectory(resumed, seed=2)
    resumed.load_state_dict(state)
    assert torch.equal(_trajectory(resumed, seed=1), second)

    gradnorm.reset()
    assert torch.equal(_trajectory(gradnorm, seed=0), first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tasks": 0}, "`num_tasks` must be at least 1, found 0"),
        ({"alpha": -0.1}, "`alpha` must be at least 0 and finite, found -0.1"),
        ({"alpha": float("nan")}, "`alpha` .* found nan"),
        ({"learning_rate": 0.0}, "`learning_rate` must be positive and finite, found 0.0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GradNorm(**({"num_tasks": 3} | options))


ANY_LOSS = st.one_of(
    st.floats(-10, 10, width=32),
    st.floats(width=32),
    st.sampled_from([0.0, 1e38, -1e38, 1e-30, float("nan"), float("inf"), -float("inf")]),
)
ANY_SQUARED_NORM = st.one_of(
    st.floats(0, 100, width=32),
    st.floats(width=32),
    st.sampled_from([0.0, -1e-6, 1e-30, 1e38, float("nan"), float("inf")]),
)


@settings(max_examples=200)
@given(
    data=st.data(),
    K=st.integers(1, 6),
    steps=st.integers(1, 5),
    alpha=st.sampled_from([0.0, 0.12, 1.5, 400.0]),
)
def test_the_kernel_is_torchs_operations(data, K, steps, alpha):
    kernel, operations = (GradNorm(K, alpha=alpha, learning_rate=0.05) for _ in range(2))
    for _ in range(steps):
        losses = torch.tensor(data.draw(st.lists(ANY_LOSS, min_size=K, max_size=K)))
        squared = torch.tensor(data.draw(st.lists(ANY_SQUARED_NORM, min_size=K, max_size=K)))
        undecided = _is_undecided(operations, losses, squared)
        with portable():
            expected = operations(squared.diag(), losses)
        torch.testing.assert_close(kernel(squared.diag(), losses), expected)
        if undecided:
            kernel.load_state_dict(operations.state_dict())
        for name, value in operations.state_dict().items():
            torch.testing.assert_close(kernel.state_dict()[name], value, equal_nan=True)


def _is_undecided(gradnorm: GradNorm, losses: Tensor, squared: Tensor) -> bool:
    """Tell whether a task is on its target to rounding, where either direction is right."""
    gradnorm = copy.deepcopy(gradnorm)
    if gradnorm.state_dict()["steps"] == 0:
        gradnorm.initial_losses.copy_(losses)
    weighted = gradnorm.weights * squared.double().clamp_min(0).sqrt()
    target = weighted.mean() * gradnorm.relative_rates(losses.double()) ** gradnorm.alpha
    return bool(((weighted - target).abs() <= 1e-9 * target.abs()).any())


@pytest.mark.parametrize("K", [2, 4])
def test_another_number_of_tasks_is_refused(K):
    with pytest.raises(ValueError, match="must be of 3 tasks"):
        GradNorm(3)(torch.eye(K), torch.ones(K))
