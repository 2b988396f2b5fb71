"""Conflict measures on gradients one can draw on paper."""

from __future__ import annotations

import math

import pytest
import torch

from mtrl.metrics import conflict_metrics

pytestmark = pytest.mark.usefixtures("both_ways")


def _metrics(gradients: list[list[float]]) -> dict[str, torch.Tensor]:
    J = torch.tensor(gradients, dtype=torch.float64)
    return conflict_metrics(J @ J.T)


def test_one_conflict_among_three_pairs():
    metrics = _metrics([[3.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])  # pairs: 0, -3, +2
    assert metrics["conflict_rate"] == pytest.approx(1 / 3)
    assert metrics["cosine_min"] == pytest.approx(-1 / math.sqrt(2))
    assert metrics["norm"].tolist() == pytest.approx([3.0, 2.0, math.sqrt(2)])


def test_opposite_gradients_conflict_whatever_their_lengths():
    metrics = _metrics([[1e-6, 0.0], [-1e6, 0.0]])
    assert metrics["conflict_rate"] == 1
    assert metrics["cosine_min"] == pytest.approx(-1)


def test_agreeing_gradients_do_not_conflict():
    metrics = _metrics([[1.0, 1.0], [2.0, 2.0], [1.0, 0.0]])
    assert metrics["conflict_rate"] == 0
    assert metrics["cosine_min"] == pytest.approx(1 / math.sqrt(2))


def test_zero_gradient_conflicts_with_nobody():
    metrics = _metrics([[0.0, 0.0], [1.0, 0.0]])
    assert metrics["conflict_rate"] == 0
    assert metrics["cosine_min"] == 0
    assert metrics["norm"].tolist() == [0, 1]


def test_single_task_agrees_with_itself():
    metrics = _metrics([[3.0, 4.0]])
    assert metrics["conflict_rate"] == 0
    assert metrics["cosine_min"] == 1
    assert metrics["norm"].tolist() == [5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_finite_shows_and_is_no_conflict(dtype):
    gramian = torch.tensor([[1.0, -1.0, math.nan], [-1.0, 4.0, 1.0], [math.nan, 1.0, 9.0]])
    metrics = conflict_metrics(gramian.to(dtype))
    assert metrics["conflict_rate"] == pytest.approx(1 / 3)
    assert metrics["cosine_min"].isnan()
    assert metrics["norm"].tolist() == [1, 2, 3]
    assert metrics["norm"].dtype == dtype
