"""The sizes of the tasks' rewards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from .conftest import A, B, K


def test_rewards_are_divided_by_the_largest_of_a_task_so_far(make_agent, make_batch):
    agent = make_agent(normalize_rewards=True, reward_scale=0.5)
    first, last = make_batch(0, torch.float32), make_batch(1, torch.float32)
    agent.update(first)
    agent.update(replace(last, rewards=last.rewards * torch.tensor([0.01, 1.0, 100.0])[:, None]))
    largest = agent.largest_rewards
    means = [(batch.rewards / batch.steps).abs().amax(dim=1) for batch in (first, last)]
    assert largest[0] == means[0][0]
    assert largest[1] == max(means[0][1], means[1][1])
    assert largest[2] == 100 * means[1][2]

    ended = replace(first, terminated=torch.ones(K, B))
    expected = 0.5 * first.rewards / largest[:, None]
    torch.testing.assert_close(agent.target_values(ended, torch.zeros(K, B, A)), expected)


def test_what_a_tasks_rewards_are_counted_in_makes_no_difference(make_agent, make_batch):
    """Powers of two, so that not even rounding differs."""
    units = torch.tensor([2.0**-12, 1.0, 2.0**12])[:, None]
    one, other = (make_agent(normalize_rewards=True, reward_scale=1.0) for _ in range(2))
    plain = [make_agent() for _ in range(2)]
    for step in range(4):
        batch = make_batch(step, torch.float32)
        in_units = replace(batch, rewards=units * batch.rewards)
        for agents in ((one, other), plain):
            agents[0].update(batch)
            agents[1].update(in_units)
    torch.testing.assert_close(one.critics.state_dict(), other.critics.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(one.actor.state_dict(), other.actor.state_dict(), rtol=0, atol=0)
    name = "mlp.weights.0"
    assert not torch.equal(*(agent.critics.state_dict()[name] for agent in plain))


@pytest.mark.parametrize("normalize_rewards", [True, False])
def test_largest_rewards_are_looked_for_only_if_they_count(
    make_agent, make_batch, normalize_rewards
):
    agent = make_agent(normalize_rewards=normalize_rewards)
    before = agent.largest_rewards.clone()
    agent.update(make_batch(0, torch.float32))
    assert (agent.largest_rewards != before).all() == normalize_rewards


def test_tasks_without_rewards_are_learned_from(make_agent, make_batch):
    agent = make_agent(normalize_rewards=True)
    batch = make_batch(0, torch.float32)
    for _ in range(2):
        metrics = agent.update(replace(batch, rewards=torch.zeros(K, B)))
    assert all(metric.isfinite().all() for metric in metrics.values())


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_not_remembered(make_agent, make_batch, broken):
    agent, batch = make_agent(normalize_rewards=True), make_batch(0, torch.float32)
    rewards = batch.rewards.clone()
    rewards[1, 2] = broken
    agent.update(replace(batch, rewards=rewards))
    assert agent.largest_rewards.isfinite().all()
    assert (agent.largest_rewards > 0).all()
