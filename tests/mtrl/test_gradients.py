"""Per-task gradients against K ordinary backward passes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from mtrl.gradients import combine, expand_parameters, gramian, jacobian, linear

SMALL = st.integers(1, 5)


class TwoLayers(nn.Module):
    """E networks of two layers, built on `linear`."""

    def __init__(self, E: int, sizes: tuple[int, int, int], generator: torch.Generator) -> None:
        super().__init__()
        I, H, D = sizes  # noqa: E741
        self.first = nn.Parameter(_normal(generator, E, I, H))
        self.first_bias = nn.Parameter(_normal(generator, E, 1, H))
        self.second = nn.Parameter(_normal(generator, E, H, D))
        self.second_bias = nn.Parameter(_normal(generator, E, 1, D))

    def forward(self, inputs: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        hidden = linear(inputs, self.first, self.first_bias, dtype).tanh()
        return linear(hidden, self.second, self.second_bias, dtype)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _task_loss(outputs: Tensor, k: int) -> Tensor:
    return (outputs * (k + 1)).sin().square().sum()


def _losses(outputs: Tensor) -> Tensor:
    return torch.stack([_task_loss(outputs[:, k], k) for k in range(outputs.shape[1])])


def _one_pass_per_task(module: TwoLayers, inputs: Tensor) -> dict[str, Tensor]:
    """What is expected: ordinary products, and one backward pass for each task."""
    rows: list[tuple[Tensor, ...]] = []
    for k in range(inputs.shape[1]):
        hidden = (inputs[:, k] @ module.first + module.first_bias).tanh()
        outputs = hidden @ module.second + module.second_bias
        rows.append(torch.autograd.grad(_task_loss(outputs, k), list(module.parameters())))
    names = [name for name, _ in module.named_parameters()]
    return {name: torch.stack(column) for name, *column in zip(names, *rows, strict=True)}


def _joined(J: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten(start_dim=1) for gradient in J.values()], dim=1)


@pytest.fixture
def example(generator):
    """A module, inputs for 4 tasks and the Jacobian of their losses."""
    module = TwoLayers(2, (3, 5, 2), generator)
    inputs = _normal(generator, 2, 4, 6, 3)
    parameters = expand_parameters(module, 4)
    J = jacobian(_losses(functional_call(module, parameters, (inputs,))), parameters)
    return module, inputs, J


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@settings(max_examples=40)
@given(K=SMALL, B=SMALL, E=st.integers(1, 3), sizes=st.tuples(SMALL, SMALL, SMALL))
def test_jacobian_is_one_backward_pass_per_task(K, B, E, sizes):
    generator = torch.Generator().manual_seed(K + 10 * B + 100 * E)
    module = TwoLayers(E, sizes, generator)
    inputs = _normal(generator, E, K, B, sizes[0])
    parameters = expand_parameters(module, K)
    J = jacobian(_losses(functional_call(module, parameters, (inputs,))), parameters)
    torch.testing.assert_close(J, _one_pass_per_task(module, inputs), rtol=1e-11, atol=1e-11)


def test_expanded_parameters_share_memory_and_are_leaves(generator):
    module = TwoLayers(2, (3, 4, 1), generator)
    expanded = expand_parameters(module, 7)
    assert list(expanded) == [name for name, _ in module.named_parameters()]
    for name, parameter in module.named_parameters():
        view = expanded[name]
        assert view.shape == (7, *parameter.shape)
        assert view.data_ptr() == parameter.data_ptr()
        assert view.stride(0) == 0
        assert view.is_leaf
        assert view.requires_grad


def test_module_itself_receives_no_gradient(example):
    module, _, _ = example
    assert all(parameter.grad is None for parameter in module.parameters())


def test_task_axis_does_not_change_the_forward_pass(generator):
    module = TwoLayers(2, (3, 5, 2), generator)
    inputs = _normal(generator, 2, 4, 6, 3)
    expanded = functional_call(module, expand_parameters(module, 4), (inputs,))
    assert torch.equal(expanded, module(inputs))
    expected = (inputs @ module.first[:, None] + module.first_bias[:, None]).tanh()
    expected = expected @ module.second[:, None] + module.second_bias[:, None]
    torch.testing.assert_close(expanded, expected, rtol=1e-12, atol=1e-12)


def test_gradient_reaches_the_inputs(generator):
    module = TwoLayers(2, (3, 5, 2), generator)
    inputs = _normal(generator, 2, 4, 6, 3).requires_grad_()
    expected = torch.autograd.grad(_losses(module(inputs)).sum(), inputs)[0]
    outputs = functional_call(module, expand_parameters(module, 4), (inputs,))
    actual = torch.autograd.grad(_losses(outputs).sum(), inputs)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e100])
def test_what_one_task_sees_stays_in_its_row(example, value):
    module, inputs, J = example
    inputs = inputs.clone()
    inputs[:, 2, 3, 1] = value
    parameters = expand_parameters(module, 4)
    changed = jacobian(_losses(functional_call(module, parameters, (inputs,))), parameters)
    others = [0, 1, 3]
    for name in J:
        assert torch.equal(changed[name][others], J[name][others])
    assert not torch.equal(changed["first"][2], J["first"][2])


def test_gramian_is_that_of_the_joined_jacobian(example):
    _, _, J = example
    joined = _joined(J)
    torch.testing.assert_close(gramian(J), joined @ joined.T, rtol=1e-12, atol=1e-12)


def test_parameters_may_have_any_number_of_axes(generator):
    J = {str(shape): _normal(generator, 4, *shape) for shape in ((), (5,), (2, 3), (2, 1, 3))}
    joined = torch.cat([gradient.reshape(4, -1) for gradient in J.values()], dim=1)
    torch.testing.assert_close(gramian(J), joined @ joined.T, rtol=1e-12, atol=1e-12)
    weights = _normal(generator, 4)
    for name, gradient in combine(weights, J).items():
        torch.testing.assert_close(gradient, torch.tensordot(weights, J[name], dims=1))


def test_combine_weighs_the_rows(example, generator):
    module, _, J = example
    weights = _normal(generator, 4)
    combined = combine(weights, J)
    for name, parameter in module.named_parameters():
        assert combined[name].shape == parameter.shape
        expected = sum(weights[k] * J[name][k] for k in range(4))
        torch.testing.assert_close(combined[name], expected, rtol=1e-12, atol=1e-12)


def test_bfloat16_products_stay_close_and_results_keep_their_type(generator):
    module = TwoLayers(2, (16, 32, 4), generator).float()
    inputs = _normal(generator, 2, 3, 64, 16).float()

    def differentiate(dtype: torch.dtype) -> dict[str, Tensor]:
        parameters = expand_parameters(module, 3)
        outputs = functional_call(module, parameters, (inputs, dtype))
        assert outputs.dtype == torch.float32
        return jacobian(outputs.square().mean(dim=(0, 2, 3)), parameters)

    exact, rounded = differentiate(torch.float32), differentiate(torch.bfloat16)
    for name in exact:
        assert rounded[name].dtype == torch.float32
        error = (rounded[name] - exact[name]).norm() / exact[name].norm()
        assert 0 < error < 0.02, name
