"""One weighting after another, uniform weights, and weightings by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtrl.errors import UserError
from mtrl.types import Weighting
from mtrl.weighting import METHODS, Chain, GradNorm, PCGrad, Uniform, make_weighting


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _weigh(weighting: Weighting, J: Tensor, losses: Tensor) -> Tensor:
    return weighting(J @ J.T, losses)


def _examples(seed: int, steps: int = 10) -> list[tuple[Tensor, Tensor]]:
    generator = _generator(seed)
    scales = torch.tensor([[0.1], [1.0], [1.0], [20.0]])
    return [
        (scales * torch.randn(4, 6, generator=generator), torch.rand(4, generator=generator))
        for _ in range(steps)
    ]


def test_gradnorm_then_pcgrad_is_surgery_on_balanced_gradients():
    chain = Chain(GradNorm(4, learning_rate=0.05), PCGrad(_generator()))
    gradnorm, pcgrad = GradNorm(4, learning_rate=0.05), PCGrad(_generator())
    for J, losses in _examples(1):
        balanced = _weigh(gradnorm, J, losses)[:, None] * J
        expected = _weigh(pcgrad, balanced, losses) @ balanced
        torch.testing.assert_close(_weigh(chain, J, losses) @ J, expected)


def test_second_weighting_sees_scaled_losses_and_norms():
    first, second = GradNorm(4, learning_rate=0.05), GradNorm(4, learning_rate=0.05)
    chain = Chain(GradNorm(4, learning_rate=0.05), GradNorm(4, learning_rate=0.05))
    for J, losses in _examples(2):
        scale = _weigh(first, J, losses)
        expected = scale * _weigh(second, scale[:, None] * J, scale * losses)
        torch.testing.assert_close(_weigh(chain, J, losses), expected)


def test_uniform_is_the_mean():
    weights = _weigh(Uniform(), torch.randn(4, 6, generator=_generator()), torch.ones(4))
    assert torch.equal(weights, torch.full((4,), 0.25))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_continues_from_its_state_and_starts_over(name):
    def trajectory(weighting: Weighting, seed: int) -> Tensor:
        return torch.stack([_weigh(weighting, *example) for example in _examples(seed)])

    weighting = make_weighting(name, 4, generator=_generator(), learning_rate=0.05)
    first = trajectory(weighting, 1)
    state = weighting.state_dict()
    second = trajectory(weighting, 2)
    assert isinstance(weighting, Weighting)
    assert first.dtype == torch.float32

    resumed = make_weighting(name, 4, generator=_generator(9), learning_rate=0.05)
    resumed.load_state_dict(state)
    assert torch.equal(trajectory(resumed, 2), second)

    weighting.reset()
    assert torch.equal(trajectory(weighting, 1), first)


def test_names_build_what_they_say():
    kinds = {
        name: make_weighting(name, 3, generator=_generator(), alpha=0.7, learning_rate=0.3)
        for name in METHODS
    }
    assert isinstance(kinds["uniform"], Uniform)
    assert isinstance(kinds["pcgrad"], PCGrad)
    assert isinstance(kinds["gradnorm"], GradNorm)
    assert (kinds["gradnorm"].alpha, kinds["gradnorm"].learning_rate) == (0.7, 0.3)
    chain = kinds["gradnorm+pcgrad"]
    assert isinstance(chain, Chain)
    assert isinstance(chain.first, GradNorm)
    assert isinstance(chain.second, PCGrad)


@pytest.mark.parametrize("name", ["PCGrad", "", "uniform+pcgrad"])
def test_unknown_name_lists_the_known_ones(name):
    with pytest.raises(UserError, match=r"uniform, pcgrad, gradnorm, gradnorm\+pcgrad"):
        make_weighting(name, 3, generator=_generator())
