"""Thin products against ordinary ones."""

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
