"""Numbers of bf16 in kernels, against torch's own."""

import math
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtrl.bf16 import numbers, read, rounded, wide_type


@numba.njit
def _read_all(array, out):
    for i in range(len(array)):
        out[i] = read(array[i])


@numba.njit
def _write_all(values, array):
    for i in range(len(array)):
        array[i] = rounded(values[i], array)


def _written(values):
    result = torch.empty(len(values), dtype=torch.bfloat16)
    _write_all(values.numpy(), numbers(result))
    return result


def test_every_number_is_read_as_torch_reads_it_and_written_back_as_it_was():
    every = torch.arange(2**16).to(torch.uint16).view(torch.bfloat16)
    out = np.empty(2**16, np.float32)
    _read_all(numbers(every), out)
    assert torch.equal(torch.from_numpy(out).nan_to_num(7.0), every.float().nan_to_num(7.0))
    assert np.array_equal(np.isnan(out), every.isnan().numpy())
    back = _written(torch.from_numpy(out))
    finite = ~every.isnan()
    assert torch.equal(back[finite].view(torch.uint16), every[finite].view(torch.uint16))
    assert back[~finite].isnan().all()


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_what_is_written_is_rounded_as_torch_rounds_it(bits):
    values = torch.from_numpy(np.array(bits, np.uint32).view(np.float32))
    torch.testing.assert_close(_written(values), values.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_ties_and_ends():
    half = 2.0**-8  # of the last place of numbers from 1 to 2
    values = [1 + half, 1 + 3 * half, 1 + half + 2**-20, 3.4e38, -3.4e38, math.inf, -0.0, 1e-45]
    expected = [1.0, 1 + 4 * half, 1 + 2 * half, math.inf, -math.inf, math.inf, -0.0, 0.0]
    assert _written(torch.tensor(values)).tolist() == expected


def test_other_numbers_stay_as_they_are():
    for dtype in (torch.float32, torch.float64):
        values = torch.tensor([1 + 2**-20, math.pi], dtype=dtype)
        result = torch.empty_like(values)
        _write_all(values.numpy(), numbers(result))
        assert torch.equal(result, values)
        _read_all(values.numpy(), numbers(result))
        assert torch.equal(result, values)
    assert wide_type(torch.bfloat16) is torch.float32
    assert wide_type(torch.float64) is torch.float64


@pytest.mark.slow
def test_kernels_run_as_python_too():
    """With Numba's compiler switched off, as for a debugger."""
    program = """
import torch
from mtrl.activation import Activation
from mtrl.blocks import TaskBlocks
products, bias = torch.randn(1, 2, 3, 4).bfloat16(), torch.zeros(1, 1, 4)
result, kept = Activation(norm=True, relu=True).forward(products.clone(), bias, keep=True)
expected = torch.nn.functional.layer_norm(products.float(), [4]).relu()
torch.testing.assert_close(result.float(), expected, rtol=2**-8, atol=1e-6)
assert Activation(norm=True, relu=True).backward(result, kept)[0].dtype == torch.bfloat16
blocks = TaskBlocks(products, products)
rows = (products.double().mT @ products.double()).flatten(2)
expected = (rows @ rows.mT).sum(dim=0)
torch.testing.assert_close(
    blocks.gramian_of_factors().double(), expected, rtol=0.01, atol=0.01
)
from mtrl.task_rows import rows_and_gramian, weighted_sums
_, gramian = rows_and_gramian([products], [products], [], [])
torch.testing.assert_close(gramian.double(), expected, rtol=0.01, atol=0.01)
for D in (1, 3):
    inputs, errors, sums = torch.randn(1, 2, 4, 5), torch.randn(1, 2, 4, D), torch.randn(1, 2, D)
    J = torch.cat([(inputs.mT @ errors).flatten(2), sums], dim=2)
    kept, gramian = rows_and_gramian([inputs], [errors], [sums], [False])
    torch.testing.assert_close(gramian, (J @ J.mT).sum(dim=0))
    sum_of_weight, sum_of_bias = weighted_sums(torch.ones(2), kept, [sums], [5], [False])
    total = torch.cat([sum_of_weight.flatten(1), sum_of_bias.flatten(1)], dim=1)
    torch.testing.assert_close(total, J.sum(dim=1))
from mtrl.replay import Replay
from mtrl.types import Batch
replay = Replay(1, 20, 3, 2, generator=torch.Generator(), steps=2, discount=0.5)
for _ in range(3):
    ones = torch.ones(1, 2)
    seen = torch.ones(1, 2, 3)
    transitions = Batch(seen, torch.ones(1, 2, 2), ones, seen, ones * 0, ones)
    replay.add(transitions, torch.zeros(1, 2).bool().numpy())
batch = replay.sample(50)
assert torch.equal(batch.rewards, torch.where(batch.steps == 2, 1.5, 1.0))
assert (batch.observations == 1).all() and (batch.next_observations == 1).all()
"""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
