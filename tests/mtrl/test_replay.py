"""The replay against a plain deque, and its sampling against chance."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtrl.errors import UserError
from mtrl.replay import Replay
from mtrl.types import Batch

K, O, A = 3, 4, 2  # noqa: E741


def _replay(capacity: int, seed: int = 0) -> Replay:
    return Replay(K, capacity, O, A, generator=torch.Generator().manual_seed(seed))


def _transitions(first: int, count: int) -> Batch:
    """Transitions that carry their own number, from 1, and their task in every field."""
    number = torch.arange(first, first + count) + 1000.0 * torch.arange(K)[:, None]
    return Batch(
        observations=number[..., None] + torch.arange(O) / 8,
        actions=-number[..., None] - torch.arange(A) / 8,
        rewards=number,
        next_observations=number[..., None] + 0.5 + torch.arange(O) / 8,
        terminated=number % 2,
    )


def _filled(capacity: int, count: int, seed: int = 0) -> Replay:
    replay = _replay(capacity, seed)
    for first in range(1, count + 1):
        replay.add(_transitions(first, 1))
    return replay


def _assert_whole(batch: Batch) -> None:
    """Each row's fields belong to one transition of that row's task."""
    number = batch.rewards
    assert torch.equal(number // 1000, torch.arange(K)[:, None].expand_as(number).float())
    assert torch.equal(batch.observations, number[..., None] + torch.arange(O) / 8)
    assert torch.equal(batch.actions, -number[..., None] - torch.arange(A) / 8)
    assert torch.equal(batch.next_observations, batch.observations + 0.5)
    assert torch.equal(batch.terminated, number % 2)


def _numbers(rewards: Tensor, task: int) -> set[int]:
    return {int(number) - 1000 * task for number in rewards[task]}


@settings(max_examples=40)
@given(capacity=st.integers(1, 12), sizes=st.lists(st.integers(1, 12), max_size=12))
def test_holds_what_a_deque_of_that_length_holds(capacity, sizes):
    replay = _replay(capacity)
    model: deque[int] = deque(maxlen=capacity)
    for size in sizes:
        count = min(size, capacity)
        first = 1 + (max(model) if model else 0)
        replay.add(_transitions(first, count))
        model.extend(range(first, first + count))
        assert replay.size == len(model)
        batch = replay.sample(300)
        _assert_whole(batch)
        for task in range(K):  # 300 draws miss one of 12 with probability 5e-11
            assert _numbers(batch.rewards, task) == set(model)


def test_never_returns_an_unwritten_slot():
    replay = _replay(capacity=1000)
    replay.add(_transitions(1, 3))
    for _ in range(20):
        batch = replay.sample(64)
        _assert_whole(batch)
        assert _numbers(batch.rewards, 0) <= {1, 2, 3}


def test_draws_are_uniform_and_independent_between_tasks():
    replay = _filled(capacity=5, count=8)  # full, and wrapped around: 4 to 8
    numbers = replay.sample(20_000).rewards.long() % 1000 - 4
    for task in range(K):
        counts = numbers[task].bincount(minlength=5)
        # Chi-square, 4 degrees of freedom: 18.5 is exceeded once in a thousand.
        assert (counts - 4000).square().sum() / 4000 < 18.5
    for one, other in ((0, 1), (0, 2), (1, 2)):
        pairs = (5 * numbers[one] + numbers[other]).bincount(minlength=25)
        # 24 degrees of freedom: 51.2 is exceeded once in a thousand.
        assert (pairs - 800).square().sum() / 800 < 51.2


def test_draws_follow_the_generator():
    first, second = _filled(50, 50, seed=1), _filled(50, 50, seed=1)
    other = _filled(50, 50, seed=2)
    drawn = first.sample(16).rewards
    assert torch.equal(drawn, second.sample(16).rewards)
    assert not torch.equal(drawn, other.sample(16).rewards)
    assert not torch.equal(drawn, first.sample(16).rewards)


def test_sample_is_a_copy():
    replay = _filled(capacity=2, count=2)
    batch = replay.sample(8)
    replay.add(_transitions(100, 2))
    _assert_whole(batch)
    assert _numbers(batch.rewards, 0) <= {1, 2}
    batch.rewards.zero_()
    _assert_whole(replay.sample(8))


def test_later_changes_to_what_was_added_do_not_matter():
    replay = _replay(4)
    transitions = _transitions(1, 4)
    replay.add(transitions)
    transitions.observations.zero_()
    _assert_whole(replay.sample(16))


@pytest.mark.parametrize("count", [0, 3, 5, 8])
def test_state_continues_bit_for_bit(count):
    replay = _filled(capacity=5, count=count)
    resumed = _filled(capacity=5, count=4, seed=9)
    resumed.load_state_dict(replay.state_dict())
    assert resumed.size == replay.size
    for first in range(20, 27):
        for one in (replay, resumed):
            one.add(_transitions(first, 1))
        expected, actual = replay.sample(32), resumed.sample(32)
        _assert_whole(actual)
        assert torch.equal(actual.rewards, expected.rewards)


def test_state_of_another_shape_is_refused():
    with pytest.raises(UserError, match="`capacity` is 6, but the saved replay has 5"):
        _replay(6).load_state_dict(_filled(5, 3).state_dict())
    one_task = Replay(1, 5, O, A, generator=torch.Generator())
    replay = _filled(5, 3)
    one_task.add(Batch(*(field[:1] for field in vars(_transitions(1, 3)).values())))
    with pytest.raises(UserError, match="tasks"):
        replay.load_state_dict(one_task.state_dict())


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"`capacity` must be at least 1 .* found 0"):
        _replay(0)
    with pytest.raises(UserError, match="replay is empty"):
        _replay(5).sample(1)
    with pytest.raises(UserError, match=r"`capacity` is 5 .* but 6 arrive"):
        _replay(5).add(_transitions(1, 6))
