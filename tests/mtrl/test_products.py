"""Thin products, and products in bf16, against ordinary ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtrl import dispatch, products
from mtrl.products import multiply, multiply_rows_that_count

SIZES = st.integers(1, 4) | st.just(20)


@given(E=SIZES, R=SIZES, I=SIZES, D=SIZES, transposed=st.booleans())
def test_products_are_those_of_bmm(E, R, I, D, transposed):  # noqa: E741
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(E, R, I, generator=generator, dtype=torch.float64)
    right = torch.randn(E, I, D, generator=generator, dtype=torch.float64)
    if transposed:
        left, right = left.mT.contiguous().mT, right.mT.contiguous().mT
    torch.testing.assert_close(
        multiply(left, right), torch.bmm(left, right), rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("in_hardware", [False, True])
@pytest.mark.parametrize(("R", "I", "D"), [(33, 70, 40), (33, 70, 1), (33, 1, 40), (40, 70, 8)])
def test_products_in_bf16_are_rounded_once(monkeypatch, in_hardware, R, I, D):  # noqa: E741
    """Of numbers that are bf16, and added up as fp32; whatever the processor has."""
    monkeypatch.setattr("mtrl.products.has_bf16", lambda device: in_hardware)
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(2, R, I, generator=generator).bfloat16()
    right = torch.randn(2, I, D, generator=generator).bfloat16()
    product = multiply(left, right)
    assert product.dtype == torch.bfloat16
    exact = left.double() @ right.double()
    # Half of the last of eight bits, and what sums of either order differ by.
    torch.testing.assert_close(product.double(), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("I", "D"), [(1, 40), (70, 1), (1, 1)])
def test_bf16_with_a_column_of_float32_is_rounded_at_the_end_only(I, D, dtype):  # noqa: E741
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(2, 33, I, generator=generator).bfloat16()
    right = torch.randn(2, I, D, generator=generator)
    product = multiply(left, right, dtype)
    assert product.dtype == dtype
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-5
    exact = left.double() @ right.double()
    torch.testing.assert_close(product.double(), exact, rtol=rounding, atol=1e-5)


def test_a_thin_factor_may_lie_in_strides_and_hold_infinity():
    left, right = torch.ones(2, 5, 4).bfloat16(), torch.ones(2, 4, 7)
    right[0, 0] = torch.inf
    product = multiply(left, right[:, :, :1])
    assert product[0].isinf().all()
    assert torch.equal(product[1], torch.full((5, 1), 4.0))
    rows = multiply(left[..., :1], right[:, 1:2], torch.bfloat16)
    assert torch.equal(rows, torch.ones(2, 5, 7).bfloat16())


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(("R", "I", "D"), [(100, 20, 30), (3, 20, 2), (17, 1, 5), (40, 30, 1)])
def test_rows_of_zeros_change_nothing_but_the_time(monkeypatch, R, I, D, share, dtype):  # noqa: E741
    monkeypatch.setattr("mtrl.products.LARGE", 0)
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(2, R, I, generator=generator)
    zeros = torch.rand(R, generator=generator) < share
    left[0, zeros] = 0
    left[1, ~zeros] = -0.0
    left, right = left.to(dtype), torch.randn(2, I, D, generator=generator).to(dtype)
    product = multiply_rows_that_count(left, right, dtype)
    rounding = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(product, multiply(left, right), rtol=rounding, atol=rounding)
    assert product.dtype == dtype
    assert not product[0, zeros].any()


def test_rows_that_are_not_finite_count(monkeypatch):
    monkeypatch.setattr("mtrl.products.LARGE", 0)
    left = torch.zeros(1, 50, 20)
    left[0, 7, 3], left[0, 9, 4] = torch.nan, torch.inf
    product = multiply_rows_that_count(left, torch.ones(1, 20, 5), torch.float32)
    assert product[0, 7].isnan().all()
    assert product[0, 9].isinf().all()
    others = torch.ones(50, dtype=torch.bool)
    others[[7, 9]] = False
    assert not product[0, others].any()


def test_large_products_are_those_of_fewer_rows(monkeypatch):
    """Of twin critics each row goes back through one: half of all, and few numbers of rows."""
    multiplied, multiply_into = [], products._multiply_into
    monkeypatch.setattr(
        products,
        "_multiply_into",
        lambda *args: multiplied.append(len(args[0])) or multiply_into(*args),
    )
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 1600, 256, generator=generator), torch.randn(2, 256, 128)
    lower = torch.rand(1600, generator=generator) < 0.5
    left[0, lower], left[1, ~lower] = 0, 0
    product = multiply_rows_that_count(left, right, torch.float32)
    torch.testing.assert_close(product, left @ right, rtol=1e-4, atol=1e-4)
    if dispatch.has_operators(left):
        assert len(multiplied) == 2
        assert all(rows % 100 == 0 and 800 <= rows <= 1000 for rows in multiplied)
