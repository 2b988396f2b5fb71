"""Networks that go back to how they began."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mtrl.types import State

pytestmark = pytest.mark.usefixtures("both_ways")

EVERY = 3


def _networks(agent) -> State:
    names = ("actor", "averaged_actor", "critics", "target_critics")
    return {name: getattr(agent, name).state_dict() for name in names}


def _steps(agent) -> set[int]:
    optimizers = (agent.actor_optimizer, agent.critic_optimizer)
    adams = [adam for one in optimizers for adam in one.state_dict()["adam"].values()]
    return {int(adam["step"]) for adam in adams}


def _update(agent, make_batch, number):
    return agent.update(make_batch(number, torch.float32))


def test_after_a_reset_networks_learn_from_where_they_began(make_agent, make_batch):
    """Uniform weights and one temperature for good: all else that an update depends on."""
    options = {"temperature_learning_rate": 1e-30, "actor_average_rate": 0.1} | {
        f"{network}_weighting": "uniform" for network in ("critic", "actor")
    }
    agent = make_agent(reset_every=EVERY, **options)
    for number in range(3 * EVERY):
        if number % EVERY == 0:
            new = make_agent(**options)
            new.target_critics.load_state_dict(new.critics.state_dict())  # as a reset leaves it
            for one, other in zip(agent.generators, new.generators, strict=True):
                other.set_state(one.get_state())
            if number == 0:
                agent.target_critics.load_state_dict(agent.critics.state_dict())
        for one in (agent, new):
            _update(one, make_batch, number)
        torch.testing.assert_close(_networks(agent), _networks(new), rtol=0, atol=0)
        assert _steps(agent) == _steps(new) == {number % EVERY + 1}


def test_temperatures_and_weights_of_tasks_stay(make_agent, make_batch):
    agent = make_agent(reset_every=EVERY)
    for number in range(EVERY):
        _update(agent, make_batch, number)
    before = agent.state_dict()
    agent._reset_if_due()
    after = agent.state_dict()
    assert _steps(agent) == {0}
    kept = ["log_temperatures", "temperature_adam", "noise_generator"]
    torch.testing.assert_close(*({k: s[k] for k in kept} for s in (after, before)), rtol=0, atol=0)
    for name in ("actor_optimizer", "critic_optimizer"):
        weightings = (state[name]["weighting"] for state in (after, before))
        torch.testing.assert_close(*weightings, rtol=0, atol=0)


def test_updates_that_were_left_out_do_not_count(make_agent, make_batch):
    agent = make_agent(reset_every=EVERY)
    _update(agent, make_batch, 0)
    batch = make_batch(1, torch.float32)
    agent.update(replace(batch, observations=batch.observations * torch.nan))
    for number in range(2, EVERY + 1):
        _update(agent, make_batch, number)
    assert _steps(agent) == {EVERY}
    _update(agent, make_batch, 9)
    assert _steps(agent) == {1}


@pytest.mark.parametrize("updates_before", [EVERY - 1, EVERY, EVERY + 1])
def test_a_resumed_agent_is_reset_when_it_would_have_been(make_agent, make_batch, updates_before):
    options = {"reset_every": EVERY, "learning_rate_half_life": 2.0, "task_embedding": 5}
    agent, resumed = make_agent(**options), make_agent(seed=1, **options)
    for number in range(updates_before):
        _update(agent, make_batch, number)
    resumed.load_state_dict(agent.state_dict())
    for number in range(2 * EVERY):
        for either in (agent, resumed):
            _update(either, make_batch, 100 + number)
    torch.testing.assert_close(resumed.state_dict(), agent.state_dict(), rtol=0, atol=0)
