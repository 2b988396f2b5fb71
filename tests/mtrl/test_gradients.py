"""Per-task gradients against K ordinary backward passes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtrl.blocks import TaskBlocks
from mtrl.gradients import Tape, combine, gramian, jacobian, rows
from mtrl.layers import Layer, chain

pytestmark = pytest.mark.usefixtures("both_ways")

SMALL = st.integers(1, 5)


class TwoLayers(nn.Module):
    """E networks of two layers, one by one, with what autograd differentiates between them."""

    def __init__(self, E: int, sizes: tuple[int, int, int], generator: torch.Generator) -> None:
        super().__init__()
        I, H, D = sizes  # noqa: E741
        self.first = nn.Parameter(_normal(generator, E, I, H))
        self.first_bias = nn.Parameter(_normal(generator, E, 1, H))
        self.second = nn.Parameter(_normal(generator, E, H, D))
        self.second_bias = nn.Parameter(_normal(generator, E, 1, D))

    def forward(
        self, inputs: Tensor, tape: Tape | None = None, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        first = Layer(self.first, self.first_bias)
        hidden = chain(inputs, [first], tape=tape, dtype=dtype).tanh()
        return chain(hidden, [Layer(self.second, self.second_bias)], tape=tape, dtype=dtype)


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


def _rows(module: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """The Jacobian by one backward pass, written out, by parameter name."""
    tape = Tape()
    by_parameter = rows(jacobian(_losses(module(inputs, tape)), tape))
    return {name: by_parameter[parameter] for name, parameter in module.named_parameters()}


def _joined(J: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten(start_dim=1) for gradient in J.values()], dim=1)


@pytest.fixture
def example(generator):
    """A module, inputs for 4 tasks and the Jacobian of their losses."""
    module = TwoLayers(2, (3, 5, 2), generator)
    inputs = _normal(generator, 2, 4, 6, 3)
    tape = Tape()
    return module, inputs, jacobian(_losses(module(inputs, tape)), tape)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@settings(max_examples=40)
@given(K=SMALL, B=SMALL, E=st.integers(1, 3), sizes=st.tuples(SMALL, SMALL, SMALL))
def test_jacobian_is_one_backward_pass_per_task(K, B, E, sizes):
    generator = torch.Generator().manual_seed(K + 10 * B + 100 * E)
    module = TwoLayers(E, sizes, generator)
    inputs = _normal(generator, E, K, B, sizes[0])
    expected = _one_pass_per_task(module, inputs)
    torch.testing.assert_close(_rows(module, inputs), expected, rtol=1e-11, atol=1e-11)


def test_module_itself_receives_no_gradient(example):
    module, _, _ = example
    assert all(parameter.grad is None for parameter in module.parameters())


def test_tape_does_not_change_the_forward_pass(generator):
    module = TwoLayers(2, (3, 5, 2), generator)
    inputs = _normal(generator, 2, 4, 6, 3)
    taped = module(inputs, Tape())
    assert torch.equal(taped, module(inputs))
    expected = (inputs @ module.first[:, None] + module.first_bias[:, None]).tanh()
    expected = expected @ module.second[:, None] + module.second_bias[:, None]
    torch.testing.assert_close(taped, expected, rtol=1e-12, atol=1e-12)


def test_gradient_reaches_the_inputs(generator):
    module = TwoLayers(2, (3, 5, 2), generator)
    inputs = _normal(generator, 2, 4, 6, 3).requires_grad_()
    hidden = (inputs @ module.first[:, None] + module.first_bias[:, None]).tanh()
    outputs = hidden @ module.second[:, None] + module.second_bias[:, None]
    expected = torch.autograd.grad(_losses(outputs).sum(), inputs)[0]
    actual = torch.autograd.grad(_losses(module(inputs, Tape())).sum(), inputs)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e100])
def test_what_one_task_sees_stays_in_its_row(example, value):
    module, inputs, _ = example
    J = _rows(module, inputs)
    inputs = inputs.clone()
    inputs[:, 2, 3, 1] = value
    changed = _rows(module, inputs)
    others = [0, 1, 3]
    for name in J:
        assert torch.equal(changed[name][others], J[name][others])
    assert not torch.equal(changed["first"][2], J["first"][2])


@pytest.mark.parametrize("way", ["factors", "kept", "forgotten", "mixed"])
@settings(max_examples=30)
@given(
    K=st.integers(1, 25),
    B=SMALL,
    E=st.integers(1, 3),
    sizes=st.tuples(SMALL, SMALL, SMALL),
)
def test_gramian_and_combination_are_those_of_the_jacobian(way, K, B, E, sizes):
    """In all ways, whichever the shapes would choose."""
    generator = torch.Generator().manual_seed(K + 100 * B)
    module = TwoLayers(E, sizes, generator)
    inputs = _normal(generator, E, K, B, sizes[0])
    weights = _normal(generator, K)
    expected = _one_pass_per_task(module, inputs)
    tape = Tape()
    J = jacobian(_losses(module(inputs, tape)), tape)

    def multiplies_out(blocks):
        return blocks.inputs.shape[-1] % 2 == 1 if way == "mixed" else way != "factors"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskBlocks, "multiplies_out", multiplies_out)
        patch.setattr("mtrl.task_rows.LARGE", math.inf if way == "kept" else 0)
        G, combined = gramian(J), combine(weights, J)
    joined = _joined(expected)
    torch.testing.assert_close(G, joined @ joined.T, rtol=1e-10, atol=1e-10)
    assert set(combined) == set(module.parameters())
    for name, parameter in module.named_parameters():
        row = torch.tensordot(weights, expected[name], dims=1)
        torch.testing.assert_close(combined[parameter], row, rtol=1e-10, atol=1e-10)


def test_weights_can_be_combined_without_a_gramian(example, generator):
    module, inputs, J = example
    weights = _normal(generator, 4)
    expected = _one_pass_per_task(module, inputs)
    combined = combine(weights, J)
    for name, parameter in module.named_parameters():
        row = torch.tensordot(weights, expected[name], dims=1)
        torch.testing.assert_close(combined[parameter], row, rtol=1e-12, atol=1e-12)


def test_bfloat16_products_stay_close_and_results_keep_their_type(generator):
    module = TwoLayers(2, (16, 32, 4), generator).float()
    inputs = _normal(generator, 2, 3, 64, 16).float()

    def differentiate(dtype: torch.dtype) -> dict[str, Tensor]:
        tape = Tape()
        outputs = module(inputs, tape, dtype)
        assert outputs.dtype == torch.float32
        by_parameter = rows(jacobian(outputs.square().mean(dim=(0, 2, 3)), tape))
        return {name: by_parameter[value] for name, value in module.named_parameters()}

    exact, rounded = differentiate(torch.float32), differentiate(torch.bfloat16)
    for name in exact:
        assert rounded[name].dtype == torch.float32
        error = (rounded[name] - exact[name]).norm() / exact[name].norm()
        assert 0 < error < 0.02, name
