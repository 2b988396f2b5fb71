"""Networks that begin anew."""

from __future__ import annotations

import pytest
import torch

from mtrl.types import State

EVERY = 3


def _learned(agent) -> State:
    names = ("actor", "averaged_actor", "critics", "target_critics")
    return {name: getattr(agent, name).state_dict() for name in names}


def _adams(agent) -> State:
    return {
        name: getattr(agent, name).state_dict()["adam"]
        for name in ("actor_optimizer", "critic_optimizer")
    }


def test_after_every_so_many_updates_all_networks_are_as_they_began(make_agent, make_batch):
    agent = make_agent(reset_every=EVERY)
    initial = make_agent().state_dict()
    began = {name: initial[name] for name in _learned(agent)}
    began["target_critics"] = began["critics"]  # which the fixture sets apart
    for update in range(1, 3 * EVERY + 1):
        agent.update(make_batch(update, torch.float32))
        for name, parameters in _learned(agent).items():
            for key, parameter in parameters.items():
                same = torch.equal(parameter, began[name][key])
                assert same == (update % EVERY == 0), (update, name, key)
        steps = {int(adam["step"]) for adams in _adams(agent).values() for adam in adams.values()}
        assert steps == {update % EVERY}


def test_temperatures_and_weights_of_tasks_stay(make_agent, make_batch):
    one, other = make_agent(reset_every=EVERY), make_agent()
    for update in range(EVERY):
        for agent in (one, other):
            agent.update(make_batch(update, torch.float32))
    kept, expected = one.state_dict(), other.state_dict()
    for name in ("log_temperatures", "temperature_adam", "noise_generator"):
        torch.testing.assert_close(kept[name], expected[name], rtol=0, atol=0)
    for name in ("actor_optimizer", "critic_optimizer"):
        kept_weights, expected_weights = kept[name]["weighting"], expected[name]["weighting"]
        torch.testing.assert_close(kept_weights, expected_weights, rtol=0, atol=0)


@pytest.mark.parametrize("updates_before", [EVERY - 1, EVERY, EVERY + 1])
def test_a_resumed_agent_begins_anew_when_it_would_have(make_agent, make_batch, updates_before):
    options = {"reset_every": EVERY, "learning_rate_half_life": 2.0, "task_embedding": 5}
    agent, resumed = make_agent(**options), make_agent(**options)
    for update in range(updates_before):
        agent.update(make_batch(update, torch.float32))
    resumed.load_state_dict(agent.state_dict())
    for update in range(2 * EVERY):
        for either in (agent, resumed):
            either.update(make_batch(100 + update, torch.float32))
    torch.testing.assert_close(resumed.state_dict(), agent.state_dict(), rtol=0, atol=0)
