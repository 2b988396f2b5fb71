"""The noise with which SAC acts while it explores."""

import pytest
import torch

from mtrl.seeding import make_generator

pytestmark = pytest.mark.usefixtures("both_ways")

K, O, A = 3, 4, 2  # noqa: E741


def test_every_environment_of_every_task_has_noise_of_its_own(make_agent):
    agent = make_agent()
    with torch.no_grad():
        for parameter in (*agent.actor.parameters(), *agent.averaged_actor.parameters()):
            parameter.zero_()  # one and the same policy everywhere
    actions = agent.act(torch.zeros(K, 4, O))
    assert actions.shape == (K, 4, A)
    assert len(actions.unique()) == K * 4 * A
    assert not torch.equal(agent.act(torch.zeros(K, 4, O)), actions)
    assert not agent.act(torch.zeros(K, 4, O), deterministic=True).any()


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_exploration_noise_is_standard_normal_and_correlated_as_asked(make_agent, correlation):
    agent = make_agent(exploration_correlation=correlation)
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter.zero_()  # mean 0 and deviation 1: tanh of the noise itself
    steps, N = 200, 100
    actions = [agent.act(torch.zeros(K, N, O)) for _ in range(steps)]
    noise = torch.stack(actions).double().atanh().flatten(1)  # each column is one action's
    assert noise.mean().abs() < 0.05
    assert abs(noise.var().item() - 1) < 0.05
    for lag in (1, 2, 5):
        found = (noise[lag:] * noise[:-lag]).mean().item()
        assert abs(found - correlation**lag) < 0.03
    others = noise.roll(1, dims=1)  # of other environments or other directions
    assert (noise * others).mean().abs() < 0.02


def test_without_correlation_noise_is_what_the_generator_gives(make_agent):
    agents = [make_agent(exploration_correlation=correlation) for correlation in (0.0, 0.9)]
    observations = torch.zeros(K, 4, O)
    first = [agent.act(observations) for agent in agents]
    assert torch.equal(*first)
    second = [agent.act(observations) for agent in agents]
    assert not torch.equal(*second)
    generator = make_generator(0, "action noise")
    for actions in (first[0], second[0]):
        noise = torch.randn(K, 4, A, generator=generator)
        assert torch.equal(actions, agents[0].actor(observations).sample(noise)[0])


def test_evaluation_leaves_exploration_noise_alone(make_agent):
    one, other = (make_agent(exploration_correlation=0.9) for _ in range(2))
    for agent in (one, other):
        agent.act(torch.zeros(K, 4, O))
    one.act(torch.zeros(K, 7, O), deterministic=True)
    assert torch.equal(one.act(torch.zeros(K, 4, O)), other.act(torch.zeros(K, 4, O)))


def test_exploration_noise_begins_anew_with_another_number_of_environments(make_agent):
    other, fresh = make_agent(exploration_correlation=0.9), make_agent()
    other.act(torch.zeros(K, 4, O))
    fresh.load_state_dict(other.state_dict())
    assert torch.equal(other.act(torch.zeros(K, 5, O)), fresh.act(torch.zeros(K, 5, O)))


@pytest.mark.parametrize("shape", [(K + 1, 4, A), (K, 4, A + 1), (K, 4), ()])
def test_exploration_noise_of_another_agent_is_refused(make_agent, shape):
    agent = make_agent()
    with pytest.raises(ValueError, match="exploration_noise"):
        agent.load_state_dict(agent.state_dict() | {"exploration_noise": torch.zeros(shape)})
