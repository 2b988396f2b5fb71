"""PCGrad against Algorithm 1 of its paper, written on vectors, and against torchjd."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchjd.aggregation import PCGrad as TorchJDPCGrad

from mtrl.weighting import PCGrad
from mtrl.weighting.pcgrad import _order_others, project

pytestmark = pytest.mark.usefixtures("both_ways")


def _row_loop(J: Tensor, order: Tensor) -> Tensor:
    """Yu et al. 2020, Algorithm 1, lines 3-9: the projected gradient of each task."""
    projected = J.clone()
    for i, others in enumerate(order.tolist()):
        for j in others:
            inner = projected[i].dot(J[j])
            if inner < 0:
                projected[i] -= inner / J[j].dot(J[j]) * J[j]
    return projected


def _pcgrad(seed: int = 0, **options: str) -> PCGrad:
    return PCGrad(torch.Generator().manual_seed(seed), **options)


def _weigh(weighting: PCGrad, J: Tensor) -> Tensor:
    return weighting(J @ J.T, torch.ones(len(J), dtype=J.dtype))


@st.composite
def jacobians(draw: st.DrawFn, num_tasks: st.SearchStrategy[int] = st.integers(1, 9)) -> Tensor:  # noqa: B008
    """Random gradients of any rank, their lengths up to six orders of magnitude apart."""
    K = draw(num_tasks)
    P = draw(st.integers(1, 30))
    rank = draw(st.integers(1, min(K, P)))
    spread = draw(st.sampled_from([0.0, 1.0, 3.0]))
    overall = 10.0 ** draw(st.integers(-8, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    scales = 10 ** (spread * (2 * torch.rand(K, 1, generator=generator, dtype=torch.float64) - 1))
    return overall * scales * (normal(K, rank) @ normal(rank, P))


@given(J=jacobians(), seed=st.integers(0, 1000))
def test_equals_the_papers_loop_over_rows(J, seed):
    order = _pcgrad(seed).draw_order(len(J), torch.device("cpu"))
    expected = _row_loop(J, order)
    lengths = J.norm(dim=1, keepdim=True)

    actual = project(J @ J.T, order) @ J
    assert ((actual - expected) / lengths).abs().max() < 1e-10

    combined = _weigh(_pcgrad(seed), J) @ J
    assert (combined - expected.sum(dim=0)).norm() < 1e-10 * lengths.sum()


@given(J=jacobians(num_tasks=st.just(2)))
def test_equals_torchjd_for_two_tasks(J):
    expected = TorchJDPCGrad()(J)
    actual = _weigh(_pcgrad(), J) @ J
    assert (actual - expected).norm() <= 1e-10 * J.norm(dim=1).sum()


@given(J=jacobians(num_tasks=st.just(2)))
def test_does_not_make_a_conflict_of_two_tasks_worse(J):
    combined = _weigh(_pcgrad(), J) @ J
    lengths = J.norm(dim=1)
    assert (J @ combined >= -1e-10 * lengths * lengths.sum()).all()


def test_known_answer():
    J = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    weights = _weigh(_pcgrad(), J)
    torch.testing.assert_close(weights, torch.tensor([2.2222, 1.5789]), rtol=0, atol=5e-5)
    torch.testing.assert_close(
        weights @ J, torch.tensor([0.5848, 3.8012, 3.8012]), rtol=0, atol=5e-5
    )


def test_order_of_visits_matters_and_is_the_one_drawn():
    J = torch.tensor([[1.0, 0.0], [-1.0, 0.2], [-0.4, -1.0]], dtype=torch.float64)
    rest = [[0, 2], [0, 1]]
    one, other = (torch.tensor([first, *rest]) for first in ([1, 2], [2, 1]))
    assert not torch.allclose(_row_loop(J, one), _row_loop(J, other))
    for order in (one, other):
        torch.testing.assert_close(project(J @ J.T, order) @ J, _row_loop(J, order))


def test_projects_off_original_gradients_not_projected_ones():
    # Task 1's own projection would turn it away from task 0; task 0 must not see that.
    J = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    combined = _weigh(_pcgrad(), J) @ J
    # (1, 0) off (-1, 1) is (1/2, 1/2); (-1, 1) off (1, 0) is (0, 1).
    torch.testing.assert_close(combined, torch.tensor([0.5, 1.5], dtype=torch.float64))


@pytest.mark.parametrize("K", [1, 2, 10])
def test_identical_tasks_are_summed(K):
    J = torch.tensor([[1.0, -2.0, 3.0]]).expand(K, 3)
    assert torch.equal(_weigh(_pcgrad(), J), torch.ones(K))


def test_mean_is_the_sum_over_the_number_of_tasks():
    J = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0], [0.0, -1.0, 0.0]])
    torch.testing.assert_close(_weigh(_pcgrad(3, reduction="mean"), J), _weigh(_pcgrad(3), J) / 3)


def test_zero_gradients_change_nothing_for_the_others():
    J = torch.tensor([[-4.0, 1.0, 1.0], [0.0, 0.0, 0.0], [6.0, 1.0, 1.0]])
    weights = _weigh(_pcgrad(), J)
    torch.testing.assert_close(weights[[0, 2]], torch.tensor([2.2222, 1.5789]), rtol=0, atol=5e-5)
    assert _weigh(_pcgrad(), torch.zeros(3, 4)).isfinite().all()


def test_small_gradients_are_projected_like_large_ones():
    J = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    torch.testing.assert_close(_weigh(_pcgrad(), 1e-15 * J), _weigh(_pcgrad(), J))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_gradient_that_is_not_finite_is_left_out(value):
    J = torch.tensor([[-4.0, 1.0, 1.0], [1.0, value, 1.0], [6.0, 1.0, 1.0]])
    weights = _weigh(_pcgrad(), J)
    assert weights[1] == 0
    torch.testing.assert_close(weights[[0, 2]], torch.tensor([2.2222, 1.5789]), rtol=0, atol=5e-5)


def test_input_is_left_alone_and_type_kept():
    J = torch.tensor([[-4.0, 1.0], [6.0, 1.0]])
    gramian = J @ J.T
    before = gramian.clone()
    assert _pcgrad()(gramian, torch.ones(2)).dtype == torch.float32
    assert torch.equal(gramian, before)


def test_orders_are_uniform_and_each_task_has_its_own():
    pcgrad = _pcgrad()
    draws = [pcgrad.draw_order(4, torch.device("cpu")).tolist() for _ in range(6000)]
    for i in range(4):
        others = [j for j in range(4) if j != i]
        counts = Counter(tuple(draw[i]) for draw in draws)
        assert set(counts) == set(permutations(others))
        # Chi-square, 5 degrees of freedom: 20.5 is exceeded once in a thousand.
        assert sum((n - 1000) ** 2 / 1000 for n in counts.values()) < 20.5
    pairs = Counter((tuple(draw[0]), tuple(draw[1])) for draw in draws)
    expected = len(draws) / 36
    # 35 degrees of freedom: 66.6 is exceeded once in a thousand.
    assert len(pairs) == 36
    assert sum((n - expected) ** 2 / expected for n in pairs.values()) < 66.6


@pytest.mark.parametrize("K", [1, 2, 15, 16, 17, 50])
def test_the_kernel_orders_as_sorting_does(K):
    """Of two keys that are the same, the first comes first: no task is visited twice."""
    generator = torch.Generator().manual_seed(K)
    for coarse in (2**24, 4):
        keys = torch.randint(coarse, (K, K), generator=generator) / coarse
        sorts_last = keys.clone()
        sorts_last.diagonal().fill_(2)
        expected = sorts_last.argsort(dim=1, stable=True)[:, : K - 1]
        assert torch.equal(_order_others(keys), expected)


def test_state_continues_the_orders_and_reset_begins_them_again():
    generator = torch.Generator().manual_seed(5)
    J = torch.randn(8, 6, generator=generator)
    pcgrad = _pcgrad(7)
    first = [_weigh(pcgrad, J) for _ in range(3)]
    state = pcgrad.state_dict()
    second = [_weigh(pcgrad, J) for _ in range(3)]
    assert not torch.equal(first[0], second[0])

    resumed = _pcgrad(1)
    resumed.load_state_dict(state)
    assert all(torch.equal(_weigh(resumed, J), weights) for weights in second)

    pcgrad.reset()
    assert all(torch.equal(_weigh(pcgrad, J), weights) for weights in first)


@given(J=jacobians(), seed=st.integers(0, 1000), data=st.data())
def test_the_others_project_as_if_tasks_that_are_not_finite_were_not_there(J, seed, data):
    K, gramian = len(J), J @ J.T
    order = _pcgrad(seed).draw_order(K, torch.device("cpu"))
    whole = sorted(data.draw(st.sets(st.integers(0, K - 1), min_size=1)))
    left = [[whole.index(j) for j in order[i].tolist() if j in whole] for i in whole]
    expected = torch.zeros(K, K, dtype=torch.float64)
    index = torch.tensor(whole)
    sub_order = torch.tensor(left, dtype=torch.int64).view(len(whole), len(whole) - 1)
    expected[index[:, None], index] = project(gramian[index[:, None], index], sub_order)
    for task in set(range(K)) - set(whole):
        value = data.draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
        gramian[task], gramian[:, task] = value, value
    torch.testing.assert_close(project(gramian, order), expected, rtol=1e-12, atol=0)
