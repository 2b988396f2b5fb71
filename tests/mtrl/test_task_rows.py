"""What several layers' rows yield in one call, on processors of every kind."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from mtrl.task_rows import rows_and_gramian, weighted_sums


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_an_infinite_gradient_of_a_bias_stays_infinite():
    """Infinity less infinity would be NaN."""
    sums = torch.ones(1, 2, 3)
    sums[0, 1] = math.inf
    _, gramian = rows_and_gramian([], [], [sums], [True])
    assert torch.equal(gramian, torch.tensor([[6.0, math.inf], [math.inf, math.inf]]))
    inputs = torch.tensor([math.inf, 1.0, 1.0]).view(1, 3, 1, 1)
    (rows,), _ = rows_and_gramian([inputs], [torch.ones(1, 3, 1, 1)], [], [])
    assert rows.flatten().tolist() == [math.inf, 1.0, 1.0]


@pytest.mark.parametrize("K", [1, 3, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weighted_sums_of_several_layers(K, dtype, generator):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weights = _normal(generator, K).to(wide)
    heights, widths, own = [30, 5, 1, 0], [50, 1, 3000, 7], [True, False, False, True]
    inputs = [_normal(generator, 2, K, 4, height).to(dtype) for height in heights]
    errors = [_normal(generator, 2, K, 4, D).to(wide if D == 1 else dtype) for D in widths]
    sums = [_normal(generator, 2, K, D).to(wide) for D in widths]
    rows, _ = rows_and_gramian(inputs, errors, sums, own)
    results = weighted_sums(weights, rows, sums, heights, own)
    near = 1e-4 if wide == torch.float32 else 1e-12
    for number, size in enumerate(zip(heights, widths, strict=True)):
        J = rows[number][..., : math.prod(size)].to(wide).unflatten(-1, size)
        of_weight = torch.einsum("k,ekid->eid", weights, J)
        weighted = weights[:, None] * sums[number]
        if own[number]:
            of_weight = torch.cat([of_weight, weighted], dim=1)
        torch.testing.assert_close(results[2 * number], of_weight, rtol=near, atol=near)
        of_bias = weighted.sum(dim=1, keepdim=True)
        torch.testing.assert_close(results[2 * number + 1], of_bias, rtol=near, atol=near)


def test_a_compiler_is_told_the_right_shapes(generator):
    inputs, errors = (
        _normal(generator, 2, 3, 4, 50).float(),
        _normal(generator, 2, 3, 4, 30).float(),
    )
    sums, weights = errors.sum(dim=2), torch.ones(3)
    check = functools.partial(torch.library.opcheck, test_utils="test_faketensor")
    for large in (0, math.inf):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mtrl.task_rows.LARGE", large)
            check(torch.ops.mtrl.rows_and_gramian, ([inputs], [errors], [sums], [True]))
    rows, _ = rows_and_gramian([inputs], [errors], [], [])
    check(torch.ops.mtrl.weighted_sums, (weights, rows, [sums], [50], [True]))
    check(torch.ops.mtrl.sum_up, (errors,))


@pytest.mark.slow
@pytest.mark.parametrize("features", ["+sse2", "+avx,+avx2,+fma", "+avx,+avx2,+fma,+avx512f"])
def test_processors_with_smaller_registers_find_the_same(features):
    program = """
import torch
from mtrl import tiles
from mtrl.task_rows import rows_and_gramian, weighted_sums
assert tiles.VECTOR == {vector} and not tiles.takes_bf16()
generator = torch.Generator().manual_seed(0)
for dtype in (torch.float32, torch.float64):
    for K, B, I, D in ((1, 2, 3, 4), (4, 5, 40, 30), (11, 3, 100, 101), (7, 1, 8, 32)):
        inputs, errors = (
            torch.randn(2, K, B, size, generator=generator).to(dtype) for size in (I, D)
        )
        (kept,), gramian = rows_and_gramian([inputs], [errors], [], [])
        rows = (inputs.mT @ errors).flatten(2)
        near = {{"rtol": 1e-4, "atol": 1e-3}}
        torch.testing.assert_close(kept[..., : I * D], rows, **near)
        torch.testing.assert_close(gramian, (rows @ rows.mT).sum(dim=0), **near)
"""
    vector = 64 if "avx512f" in features else 32 if "avx" in features else 16
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    program = program.format(vector=vector)
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
