"""The squashed Gaussian against torch.distributions, exact arithmetic and integration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from agents.distributions import LOG_STD_MAX, LOG_STD_MIN, SquashedGaussian


def _tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@settings(max_examples=40)
@given(
    A=st.integers(1, 5),
    shift=st.floats(-2, 2),
    log_std=st.floats(-4, 0.5),
    seed=st.integers(0, 1000),
)
def test_log_density_is_that_of_torch_distributions(A, shift, log_std, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(3, 4, A, generator=generator, dtype=torch.float64).clamp(-3, 3)

    mean, log_stds, noise = shift + 0.3 * normal(), log_std + 0.1 * normal(), normal()
    actions, log_density = SquashedGaussian(mean, log_stds).sample(noise)
    transform = TanhTransform(cache_size=1)
    torch.testing.assert_close(actions, transform(mean + log_stds.exp() * noise))
    reference = Independent(TransformedDistribution(Normal(mean, log_stds.exp()), [transform]), 1)
    expected = reference.log_prob(transform(mean + log_stds.exp() * noise))
    assert log_density.shape == (3, 4)
    torch.testing.assert_close(log_density, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gaussian", [-300.0, -30.0, -9.5, 9.5, 30.0, 300.0])
def test_log_density_keeps_its_digits_where_tanh_saturates(gaussian, dtype):
    mean = torch.tensor([gaussian - 0.5], dtype=dtype)
    policy = SquashedGaussian(mean, torch.zeros(1, dtype=dtype))
    action, log_density = policy.sample(torch.full((1,), 0.5, dtype=dtype))
    assert abs(action) <= 1
    # 1 - tanh(x)^2 = 4 exp(-2 |x|) / (1 + exp(-2 |x|))^2
    x = abs(gaussian)
    log_slope = math.log(4) - 2 * x - 2 * math.log1p(math.exp(-2 * x))
    expected = -0.5 * 0.25 - 0.5 * math.log(2 * math.pi) - log_slope
    assert log_density.item() == pytest.approx(
        expected, rel=1e-5 if dtype == torch.float32 else 1e-12
    )


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, -0.5), (0.7, 0.0), (-1.2, -2.0), (0.3, 0.4)])
def test_density_integrates_to_one(mean, log_std):
    cells = 200_000
    actions = -1 + 2 * (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    policy = SquashedGaussian(_tensor(mean).expand(cells, 1), _tensor(log_std).expand(cells, 1))
    noise = (actions.atanh() - mean) / math.exp(log_std)
    sampled, log_density = policy.sample(noise[:, None])
    torch.testing.assert_close(sampled[:, 0], actions)
    assert log_density.exp().sum().item() * 2 / cells == pytest.approx(1, abs=1e-4)


def test_gradients_flow_through_action_and_density():
    generator = torch.Generator().manual_seed(0)
    mean, log_std, noise = (
        torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(3)
    )

    def sample(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        return SquashedGaussian(mean, log_std).sample(noise)

    assert torch.autograd.gradcheck(sample, (mean.requires_grad_(), log_std.requires_grad_()))


@pytest.mark.parametrize("gaussian", [-1e4, 1e4])
def test_gradients_stay_finite_where_tanh_saturates(gaussian):
    mean = torch.tensor([gaussian], requires_grad=True)
    log_std = torch.zeros(1, requires_grad=True)
    action, log_density = SquashedGaussian(mean, log_std).sample(torch.ones(1))
    (action.sum() + log_density).backward()
    assert mean.grad.isfinite().all()
    assert log_std.grad.isfinite().all()


def test_output_is_split_and_the_spread_kept_in_bounds():
    policy = SquashedGaussian.from_output(torch.tensor([[1.0, 2.0, 3.0, -1e3, 0.5, 1e3]]))
    assert policy.mean.tolist() == [[1.0, 2.0, 3.0]]
    assert policy.log_std.tolist() == [[LOG_STD_MIN, 0.5, LOG_STD_MAX]]


def test_mode_is_the_sample_without_noise():
    policy = SquashedGaussian(torch.tensor([[0.3, -40.0]]), torch.tensor([[0.0, 1.0]]))
    assert torch.equal(policy.mode(), policy.sample(torch.zeros(1, 2))[0])
    torch.testing.assert_close(policy.mode(), torch.tensor([[math.tanh(0.3), -1.0]]))
