"""Thin products, and products in bf16, against ordinary ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtrl.products import multiply

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
