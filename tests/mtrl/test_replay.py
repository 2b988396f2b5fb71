"""The replay against plain lists, and its sampling against chance."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mtrl.dispatch import portable
from mtrl.errors import UserError
from mtrl.replay import Replay
from mtrl.types import Batch

K, O, A = 3, 4, 2  # noqa: E741


class Streams:
    """K x N streams of observations, each one's own number, and what a replay must make of them.

    Per task, a transition is remembered until its first observation is C observations old; what
    was seen first in an episode, or after a step left out, comes before what everybody saw next.
    """

    def __init__(self, capacity, N, seed=0, **options):
        generator = torch.Generator().manual_seed(seed)
        self.replay = Replay(K, capacity, O, A, generator=generator, **options)
        self._numbers = [0] * K
        self._transitions = [[] for _ in range(K)]  # (number, first and last, reward) per task
        self._seen = [[None] * N for _ in range(K)]
        self._steps = 0
        self._N = N

    def step(self, ended, left_out):
        """Add a step; arguments are (K, N)."""
        ended, left_out = np.asarray(ended, bool), np.asarray(left_out, bool)
        before, after = np.zeros((K, self._N)), np.zeros((K, self._N))
        for k in range(K):
            for n in range(self._N):
                if self._seen[k][n] is None:
                    self._seen[k][n] = self._next(k)
            for n in range(self._N):
                first, last = self._seen[k][n], self._next(k)
                before[k, n], after[k, n] = first, last
                self._seen[k][n] = None if ended[k, n] or left_out[k, n] else last
                if not left_out[k, n]:
                    self._transitions[k].append((first, last))
        self._steps += 1
        self.replay.add(_transitions(before, after), ended, left_out)

    def reload(self, **options):
        """Go on with another replay that has loaded the state."""
        saved = self.replay
        self.replay = Replay(K, saved.capacity, O, A, generator=torch.Generator(), **options)
        self.replay.load_state_dict(saved.state_dict())

    def _next(self, task):
        self._numbers[task] += 1
        return self._numbers[task]

    def expected(self, task):
        oldest = self._numbers[task] - self.replay.capacity
        return {pair for pair in self._transitions[task] if pair[0] > oldest}


def _transitions(before, after):
    """Transitions that tell in every field from where to where they lead, and of which task."""
    before, after = torch.as_tensor(before).float(), torch.as_tensor(after).float()
    task = 1000.0 * torch.arange(K)[:, None]
    return Batch(
        observations=(before + task)[..., None] + torch.arange(O) / 8,
        actions=-(before + task)[..., None] - torch.arange(A) / 8,
        rewards=before + task,
        next_observations=(after + task)[..., None] + torch.arange(O) / 8,
        terminated=(before % 5 == 0).float(),
        steps=torch.ones_like(before),
    )


def _assert_whole(batch: Batch) -> list[set[tuple[int, int]]]:
    """Each row's fields belong to one transition of that row's task; return each task's."""
    task = 1000 * torch.arange(K)[:, None]
    before, after = batch.rewards - task, batch.next_observations[..., 0] - task
    expected = _transitions(before, after)
    for field in dataclasses.fields(Batch):
        assert torch.equal(getattr(batch, field.name), getattr(expected, field.name)), field.name
    return [set(zip(before[k].tolist(), after[k].tolist(), strict=True)) for k in range(K)]


def _filled(capacity: int, count: int, seed: int = 0) -> Replay:
    """A replay after `count` steps of one environment per task that never ends an episode."""
    streams = Streams(capacity, N=1, seed=seed)
    for _ in range(count):
        streams.step(np.zeros((K, 1)), np.zeros((K, 1)))
    return streams.replay


_flags = st.lists(st.booleans(), min_size=K * 2, max_size=K * 2)


@settings(max_examples=60)
@given(
    capacity=st.integers(6, 20),
    steps=st.lists(st.tuples(_flags, _flags), min_size=1, max_size=25),
    rarely=st.booleans(),
    detached=st.booleans(),
)
def test_remembers_what_lists_remember_however_episodes_end(capacity, steps, rarely, detached):
    streams = Streams(capacity, N=2)
    if detached:  # as on a GPU, where what the host needs to know is not the same memory
        streams.replay._starts_on_host = streams.replay._starts_on_host.copy()
    for number, (ended, left_out) in enumerate(steps):
        keep = number % 7 != 0 and rarely
        streams.step(
            np.reshape(ended, (K, 2)) & (not keep), np.reshape(left_out, (K, 2)) & (not keep)
        )
        expected = [streams.expected(k) for k in range(K)]
        assert streams.replay.size == min(map(len, expected))
        if streams.replay.size:  # 300 draws miss one of 20 with probability 2e-7
            assert _assert_whole(streams.replay.sample(300)) == expected


@settings(max_examples=60)
@given(
    capacity=st.integers(6, 20),
    steps=st.lists(st.tuples(_flags, _flags), min_size=1, max_size=25),
    n=st.integers(1, 5),
    reload_after=st.integers(0, 30),
    saved_with=st.integers(1, 5),
)
def test_several_steps_are_what_one_by_one_add_up_to(capacity, steps, n, reload_after, saved_with):
    """After each step; also where a replay goes on that was saved with other numbers of steps."""
    reloads = reload_after < len(steps)
    spans = saved_with if reloads else n
    streams = Streams(capacity, N=2, steps=spans, discount=0.5)
    for number, (ended, left_out) in enumerate(steps):
        streams.step(np.reshape(ended, (K, 2)), np.reshape(left_out, (K, 2)))
        if number == reload_after:
            streams.reload(steps=n, discount=0.5)
            spans = n
        _assert_sums(streams, spans, count=40)
    found = _assert_sums(streams, spans, count=300)
    if streams.replay.size:
        assert found == [{first for first, _ in streams.expected(k)} for k in range(K)]


def _assert_sums(streams: Streams, n: int, count: int) -> list[set[float]]:
    """Samples are sums of transitions that lead on; return the numbers that they begin at."""
    if not streams.replay.size:
        return []
    batch = streams.replay.sample(count)
    found = []
    for k in range(K):
        following = dict(streams.expected(k))
        starts = (batch.observations[k, :, 0] - 1000 * k).tolist()
        found.append(set(starts))
        for row, start in enumerate(starts):
            chain = [start]
            while len(chain) < n and chain[-1] % 5 and following[chain[-1]] in following:
                chain.append(following[chain[-1]])
            total = sum(0.5**i * (first + 1000 * k) for i, first in enumerate(chain))
            assert batch.rewards[k, row] == total
            assert batch.steps[k, row] == len(chain)
            assert batch.terminated[k, row] == (chain[-1] % 5 == 0)
            assert batch.next_observations[k, row, 0] == following[chain[-1]] + 1000 * k
            assert batch.actions[k, row, 0] == -(start + 1000 * k)
    return found


@pytest.mark.parametrize("n", [1, 2, 8])
def test_other_devices_read_the_same_bits(n):
    replay = _filled(200, 300)
    records = replay._stored.on_host
    rng = np.random.default_rng(3)
    records["total"] = rng.standard_normal(records.shape)
    records["last"] = rng.integers(200, size=records.shape)
    records["span"] = rng.integers(1, n, size=records.shape, endpoint=True)
    records["span"] *= rng.choice([-1, 1], size=records.shape, p=[0.03, 0.97])

    before = replay._generator.get_state()
    compiled = replay.sample(500)
    replay._generator.set_state(before)
    with portable():
        other = replay.sample(500)
    assert compiled.steps.unique().tolist() == list(range(1, n + 1))
    assert compiled.terminated.any()
    torch.testing.assert_close(vars(compiled), vars(other), rtol=0, atol=0)


def test_draws_are_uniform_and_independent_between_tasks():
    streams = Streams(capacity=7, N=1)
    for number in range(9):  # ended episodes and holes shift the tasks against each other
        ended = np.array([[number == 2], [number in (5, 6)], [False]])
        streams.step(ended, np.array([[False], [number == 7], [False]]))
    sizes = [len(streams.expected(k)) for k in range(K)]
    assert len(set(sizes)) > 1
    numbers = streams.replay.sample(20_000).rewards.long() % 1000
    ranks = []
    for task, size in enumerate(sizes):
        values, rank = numbers[task].unique(return_inverse=True)
        assert len(values) == size
        ranks.append(rank)
        expected = 20_000 / size
        # Chi-square, at most 6 degrees of freedom: 22.5 is exceeded once in a thousand.
        assert ((rank.bincount() - expected).square() / expected).sum() < 22.5
    for one, other in ((0, 1), (0, 2), (1, 2)):
        cells = sizes[one] * sizes[other]
        pairs = (sizes[other] * ranks[one] + ranks[other]).bincount(minlength=cells)
        # At most 35 degrees of freedom: 66.6 is exceeded once in a thousand.
        assert ((pairs - 20_000 / cells).square() / (20_000 / cells)).sum() < 66.6


def test_draws_follow_the_generator():
    first, second = _filled(50, 50, seed=1), _filled(50, 50, seed=1)
    other = _filled(50, 50, seed=2)
    drawn = first.sample(16).rewards
    assert torch.equal(drawn, second.sample(16).rewards)
    assert not torch.equal(drawn, other.sample(16).rewards)
    assert not torch.equal(drawn, first.sample(16).rewards)


def test_sample_is_a_copy():
    replay = _filled(capacity=4, count=3)
    batch = replay.sample(8)
    kept = batch.observations.clone()
    replay.add(_transitions(np.full((K, 1), 4), np.full((K, 1), 5)))
    assert torch.equal(batch.observations, kept)
    batch.observations.zero_()
    _assert_whole(replay.sample(8))


def test_later_changes_to_what_was_added_do_not_matter():
    replay = _filled(capacity=8, count=1)
    transitions = _transitions(np.full((K, 1), 2), np.full((K, 1), 3))
    replay.add(transitions)
    transitions.observations.zero_()
    transitions.rewards.zero_()
    _assert_whole(replay.sample(16))


def test_an_observation_is_stored_once():
    """With Meta-World's sizes, at most 1.1 times the bytes of what must be kept."""
    replay = Replay(2, 5000, 39, 4, generator=torch.Generator())
    ended = np.zeros((2, 4), bool)
    for number in range(1400):
        values = torch.full((2, 4, 39), float(number))
        zeros = torch.zeros(2, 4)
        batch = Batch(values, torch.zeros(2, 4, 4), zeros, values + 1, zeros, zeros + 1)
        replay.add(batch, ended | (number % 500 == 499))
    bytes_held = sum(array.nbytes for array in vars(replay._stored).values())
    bytes_needed = 2 * replay.size * (4 * (39 + 4 + 1) + 1)
    assert replay.size > 4980
    assert bytes_held < 1.1 * bytes_needed


def test_sampling_asks_nothing_that_depends_on_the_content():
    """No shape, and no number on the host, differs between a young replay and a full one."""
    young, full = _filled(capacity=50, count=1), _filled(capacity=50, count=120)
    full._generator.set_state(young._generator.get_state())
    calls = []

    class Recording(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            shapes = [tuple(a.shape) if isinstance(a, torch.Tensor) else a for a in args]
            calls.append((str(function), repr(shapes)))
            return function(*args, **(kwargs or {}))

    recorded = []
    for replay in (young, full):
        calls.clear()
        with portable(), Recording():
            replay.sample(8)
        recorded.append(list(calls))
    assert recorded[0] == recorded[1]
    assert not any("_local_scalar_dense" in name for name, _ in recorded[0])


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("count", [0, 3, 5, 8])
def test_state_continues_bit_for_bit(count, n):
    def steps(streams, numbers):
        for number in numbers:
            ended = np.array([[number % 3 == 0, False], [False] * 2, [number % 4 == 0] * 2])
            streams.step(ended, np.array([[False, number % 5 == 1], [False] * 2, [False] * 2]))

    streams = Streams(capacity=11, N=2, steps=n)
    steps(streams, range(count))
    resumed = Streams(capacity=11, N=2, seed=9, steps=n)
    steps(resumed, range(4))
    resumed.replay.load_state_dict(streams.replay.state_dict())
    resumed._numbers, resumed._seen = list(streams._numbers), [list(s) for s in streams._seen]
    assert resumed.replay.size == streams.replay.size
    for number in range(20, 27):
        for one in (streams, resumed):
            steps(one, [number])
        expected, actual = streams.replay.sample(32), resumed.replay.sample(32)
        if n == 1:
            _assert_whole(actual)
        torch.testing.assert_close(vars(actual), vars(expected), rtol=0, atol=0)
    saved, saved_again = streams.replay.state_dict(), resumed.replay.state_dict()
    for state in (saved, saved_again):
        state.pop("generator")
    torch.testing.assert_close(saved_again, saved, rtol=0, atol=0)


def test_state_of_another_shape_is_refused():
    with pytest.raises(UserError, match="`capacity` is 6, but the saved replay has 5"):
        _filled(6, 3).load_state_dict(_filled(5, 3).state_dict())
    one_task = Replay(1, 5, O, A, generator=torch.Generator())
    with pytest.raises(UserError, match="`written`"):
        one_task.load_state_dict(_filled(5, 3).state_dict())
    fewer_actions = Replay(K, 5, O, 1, generator=torch.Generator())
    with pytest.raises(UserError, match="`actions`"):
        fewer_actions.load_state_dict(_filled(5, 3).state_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {"begun": np.full(K, 9)},
        {"forgotten": np.full(K, -1)},
        {"latest": np.full((K, 1), 99)},
        {"latest": np.full((K, 2), 7)},
        {"latest": None},
        {"starts": torch.full((5, K), -3)},
        {"starts": torch.full((5, K), 2**40)},
        {"next_slots": torch.full((5, K), 5, dtype=torch.int32)},
        {"next_slots": torch.arange(5, dtype=torch.int32)[:, None].repeat(1, K)},
    ],
)
def test_a_state_that_contradicts_itself_is_refused(changes):
    replay = _filled(5, 8)
    with pytest.raises(UserError, match="contradicts itself"):
        _filled(5, 2).load_state_dict(replay.state_dict() | changes)


@pytest.mark.parametrize("number", [-3, 4, 8, 2**40])
def test_so_is_one_of_a_ring_that_is_not_full(number):
    state = _filled(11, 3).state_dict()
    state["starts"][2] = number  # the youngest
    with pytest.raises(UserError, match="contradicts itself"):
        _filled(11, 2).load_state_dict(state)


def test_so_are_starts_out_of_order_and_steps_too_far():
    state = _filled(5, 8).state_dict()
    swapped = torch.tensor([0, 1, 2, 3, 4, 6, 5, 7, 8])[state["starts"]]
    with pytest.raises(UserError, match="contradicts itself"):
        _filled(5, 2).load_state_dict(state | {"starts": swapped})
    large = Replay(K, 70_000, O, A, generator=torch.Generator())
    for step in range(4):
        large.add(_transitions(np.full((K, 20_000), step), np.full((K, 20_000), step + 1)))
    state = large.state_dict()
    large.load_state_dict(state)
    first = int(state["starts"][state["forgotten"][0] % 70_000, 0]) % 70_000
    state["next_slots"][first, 0] = (first + 66_000) % 70_000
    with pytest.raises(UserError, match="contradicts itself"):
        large.load_state_dict(state)


def test_other_types_are_stored_as_float32():
    replay = Replay(K, 9, O, A, generator=torch.Generator())
    given = _transitions(np.full((K, 1), 1), np.full((K, 1), 2))
    fields = {name: value.bfloat16() for name, value in vars(given).items()}
    replay.add(Batch(**fields))
    batch = replay.sample(4)
    assert torch.equal(batch.rewards, fields["rewards"].float().expand(K, 4))
    assert batch.rewards.dtype == batch.actions.dtype == torch.float32


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"`capacity` must be at least 1 .* found 0"):
        Replay(K, 0, O, A, generator=torch.Generator())
    with pytest.raises(UserError, match=r"`steps` must be from 1 to 32767, found 0"):
        Replay(K, 9, O, A, generator=torch.Generator(), steps=0)
    large = Replay(K, 100_000, O, A, generator=torch.Generator())
    with pytest.raises(UserError, match="a step of 32768 environments per task"):
        large.add(_transitions(np.zeros((K, 32_768)), np.ones((K, 32_768))))
    with pytest.raises(UserError, match="replay is empty"):
        _filled(5, 0).sample(1)
    with pytest.raises(UserError, match=r"`capacity` is 5 .* but a step of 2"):
        Streams(capacity=5, N=2).step(np.zeros((K, 2)), np.zeros((K, 2)))
    with pytest.raises(UserError, match=r"a step of \(3, 1\) transitions"):
        _filled(9, 1).add(_transitions(np.zeros((K, 2)), np.zeros((K, 2))))
