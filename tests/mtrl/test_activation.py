"""Bias, norm and ReLU in one pass against torch's own operations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from mtrl import dispatch
from mtrl.activation import Activation

KINDS = [Activation(norm, relu) for norm in (False, True) for relu in (False, True)]

each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


pytestmark = pytest.mark.usefixtures("both_ways")


def _ordinary(kind: Activation, products: Tensor, bias: Tensor) -> Tensor:
    result = products + bias.unsqueeze(2)
    if kind.norm:
        result = F.layer_norm(result, result.shape[-1:])
    return result.relu() if kind.relu else result


def _numbers(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _compare(kind: Activation, products: Tensor, bias: Tensor, tolerance: float) -> None:
    near = {"rtol": tolerance, "atol": tolerance}
    inputs = products.clone().requires_grad_()
    biases = bias.expand(-1, products.shape[1], -1).clone().requires_grad_()
    expected = _ordinary(kind, inputs, biases)
    gradient = _numbers(*products.shape, dtype=products.dtype, seed=1)
    of_inputs, of_biases = torch.autograd.grad(expected, (inputs, biases), gradient)

    result, kept = kind.forward(products.clone(), bias, keep=True)
    torch.testing.assert_close(result, expected, **near)
    errors, sums = kind.backward(gradient, kept)
    torch.testing.assert_close(errors, of_inputs, **near)
    torch.testing.assert_close(sums, of_biases, **near)
    assert torch.equal(kind.forward(products.clone(), bias, keep=False)[0], result)


@each_kind
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_result_and_gradients_are_torchs(kind):
    @settings(max_examples=25)
    @given(
        E=st.integers(1, 3),
        K=st.integers(1, 4),
        B=st.integers(1, 5),
        D=st.integers(1, 40),
        own_bias=st.booleans(),
    )
    def compare(E, K, B, D, own_bias):
        bias = _numbers(E, K if own_bias else 1, D, seed=2)
        # A row of one number has no spread: what its norm does to rounding errors is no test.
        products = _numbers(E, K, B, D + kind.norm)
        _compare(kind, products, F.pad(bias, (0, int(kind.norm))), 1e-9)

    compare()


@each_kind
def test_float32_differs_by_rounding_only(kind):
    products = _numbers(2, 3, 50, 256, dtype=torch.float32)
    _compare(kind, products, _numbers(2, 3, 256, dtype=torch.float32, seed=2), 1e-5)


@each_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_of_bf16_only_what_enters_and_comes_out_is_rounded(kind, dtype):
    products, bias = _numbers(2, 3, 7, 50), _numbers(2, 3, 50, seed=2).float()
    products, gradient = products.bfloat16(), _numbers(2, 3, 7, 50, seed=1).to(dtype)
    inputs, biases = products.float().requires_grad_(), bias.clone().requires_grad_()
    expected = _ordinary(kind, inputs, biases)
    of_inputs, of_biases = torch.autograd.grad(expected, (inputs, biases), gradient.float())

    result, kept = kind.forward(products.clone(), bias, keep=True, dtype=dtype)
    near = {"rtol": 2**-8 if dtype == torch.bfloat16 else 1e-5, "atol": 1e-5}
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), expected, **near)
    errors, sums = kind.backward(gradient, kept, torch.bfloat16)
    # What is kept of a norm is rounded too.
    near = {"rtol": 2**-8, "atol": 0.03 if kind.norm else 1e-5}
    assert (errors.dtype, sums.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(errors.float(), of_inputs, **near)
    torch.testing.assert_close(sums, of_biases, rtol=2**-8, atol=0.1 if kind.norm else 1e-5)


@each_kind
def test_what_is_not_finite_stays_so_and_stays_in_its_row(kind):
    products, bias = _numbers(1, 2, 3, 8), torch.zeros(1, 1, 8, dtype=torch.float64)
    clean = kind.forward(products.clone(), bias, keep=False)[0]
    products[0, 1, 2, 4] = float("nan")
    result, kept = kind.forward(products, bias, keep=True)
    assert result[0, 1, 2, 4].isnan()
    others = torch.ones(1, 2, 3, dtype=torch.bool)
    others[0, 1, 2] = False
    assert torch.equal(result[others], clean[others])
    errors, _ = kind.backward(torch.ones_like(result), kept)
    assert errors[others].isfinite().all()
    assert not (kind.norm and errors[0, 1, 2].isfinite().any())


def test_a_gradient_that_is_not_contiguous_is_read_right():
    kind = Activation(norm=True, relu=True)
    _, kept = kind.forward(_numbers(2, 3, 4, 8), _numbers(2, 1, 8), keep=True)
    spread = _numbers(8, 3, 4, 2).permute(3, 1, 2, 0)
    for actual, expected in zip(
        kind.backward(spread, kept), kind.backward(spread.contiguous(), kept), strict=True
    ):
        assert torch.equal(actual, expected)
    ones = torch.ones(1, dtype=torch.float64).expand(2, 3, 4, 8)
    assert torch.equal(kind.backward(ones, kept)[0], kind.backward(ones.contiguous(), kept)[0])


@each_kind
@pytest.mark.parametrize("B", [1, 3, 4, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_a_compiler_sees_adds_up_large_errors_in_one_call(kind, B, dtype, monkeypatch):
    gradient = _numbers(2, 3, B, 40, seed=1).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bias = _numbers(2, 1, 40).to(wide)
    with dispatch.traced():
        _, kept = kind.forward(_numbers(2, 3, B, 40).to(dtype), bias, keep=True)
        expected = kind.backward(gradient.clone(), kept)
        monkeypatch.setattr("mtrl.activation.LARGE", 0)
        errors, sums = kind.backward(gradient, kept)
    assert (errors.dtype, sums.dtype) == (dtype, wide)
    assert torch.equal(errors, expected[0])
    near = 1e-5 if dtype != torch.float64 else 1e-12
    torch.testing.assert_close(sums, expected[1], rtol=near, atol=near)


def test_numbers_far_from_zero_keep_their_digits():
    kind = Activation(norm=True)
    row = _numbers(1, 1, 1, 256, dtype=torch.float32)
    bias = torch.full((1, 1, 256), 1000.0)
    expected = F.layer_norm((row + bias).double(), [256]).float()
    torch.testing.assert_close(kind.forward(row, bias, keep=False)[0], expected, rtol=0, atol=3e-4)
