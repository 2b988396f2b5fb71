"""Categorical critics: what their histograms stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.values import CategoricalValues

LOW, HIGH, BINS = -10.0, 110.0, 101
BIN = (HIGH - LOW) / BINS


@pytest.fixture(scope="module")
def values() -> CategoricalValues:
    return CategoricalValues(LOW, HIGH, BINS)


@given(value=st.floats(LOW + 4 * BIN, HIGH - 4 * BIN))
def test_a_histogram_stands_for_its_value(values, value):
    target = torch.tensor([value], dtype=torch.float64)
    histogram = values.encode(target)
    assert histogram.shape == (1, BINS)
    assert histogram.min() >= 0
    torch.testing.assert_close(histogram.sum(), torch.ones((), dtype=torch.float64))
    # Cutting a normal distribution into bins moves its mean by far less than a bin.
    decoded = values.decode(histogram.log().clamp_min(-1e4))
    torch.testing.assert_close(decoded, target, rtol=0, atol=1e-2 * BIN)


@pytest.mark.parametrize("value", [float("-inf"), -1e30, LOW, HIGH, 1e30, float("inf")])
def test_values_beyond_the_bins_become_the_nearest(values, value):
    beyond, end = (values.encode(torch.tensor([v])) for v in (value, min(max(value, LOW), HIGH)))
    torch.testing.assert_close(beyond, end)
    assert beyond.argmax() in (0, BINS - 1)


def test_the_loss_is_least_where_outputs_are_the_targets_own(values):
    targets = torch.tensor([3.0, 57.5])
    outputs = values.encode(targets).log().clamp_min(-50.0)[None].requires_grad_()
    losses = values.losses(outputs, targets)
    assert losses.shape == (1, 2)
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-6)
    other = values.losses(values.encode(targets + BIN).log().clamp_min(-50.0)[None], targets)
    assert (other > losses).all()


def test_a_value_that_is_not_a_number_stays_none(values):
    assert values.encode(torch.tensor([float("nan")])).isnan().all()
