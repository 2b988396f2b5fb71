"""SAC's losses against a slow reference: one vector through one network at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from agents import SAC, SACConfig
from agents.networks import MLP
from agents.values import CategoricalValues
from mtrl.gradients import Tape, jacobian, rows
from mtrl.types import Batch

pytestmark = pytest.mark.usefixtures("both_ways")

K, B, O, A = 3, 5, 4, 2  # noqa: E741
EXACT = {"rtol": 1e-10, "atol": 1e-10}
VARIANTS = {
    "plain": {"layer_norm": False},
    "normalised": {"layer_norm": True},
    "mean": {"twins": "mean"},
    "residual": {"residual": True, "critic_depth": 3},
    "categorical": {"critic_values": "categorical", "value_bins": 7},
}
every_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())


def _noise(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(K, B, A, generator=generator, dtype=torch.float64)


def _network(mlp: MLP, member: int, x: Tensor) -> Tensor:
    last = len(mlp.weights) - 1
    for layer, (weight, bias) in enumerate(zip(mlp.weights, mlp.biases, strict=True)):
        if mlp.residual and layer % 2 == 1:
            entered = x
        x = x @ weight[member] + bias[member, 0]
        if layer < last:
            if mlp.layer_norm:
                x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
            ends_block = mlp.residual and layer > 0 and layer % 2 == 0
            x = x + entered if ends_block else x.clamp_min(0)
    return x


def _with_task(x: Tensor, k: int) -> Tensor:
    return torch.cat([x, F.one_hot(torch.tensor(k), K).to(x.dtype)])


def _bins(config: SACConfig) -> Tensor:
    return torch.linspace(
        config.value_low, config.value_high, config.value_bins + 1, dtype=torch.float64
    )


def _critic_value(config: SACConfig, output: Tensor) -> Tensor:
    if config.critic_values == "scalar":
        return output[0]
    edges = _bins(config)
    return (output.softmax(dim=0) * (edges[1:] + edges[:-1]) / 2).sum()


def _value(agent: SAC, critics: nn.Module, k: int, observation: Tensor, action: Tensor) -> Tensor:
    x = _with_task(torch.cat([observation, action]), k)
    outputs = [_network(critics.mlp, member, x) for member in range(2)]
    one, other = (_critic_value(agent.config, output) for output in outputs)
    return min(one, other) if agent.config.twins == "min" else (one + other) / 2


def _error(config: SACConfig, output: Tensor, target: Tensor) -> Tensor:
    if config.critic_values == "scalar":
        return (output[0] - target) ** 2
    edges = _bins(config)
    width = (edges[1] - edges[0]) * CategoricalValues.WIDTH
    inside = target.clamp(config.value_low, config.value_high)
    mass = torch.distributions.Normal(inside, width).cdf(edges).diff()
    return -(mass / mass.sum() * output.softmax(dim=0).log()).sum()


def _act(agent: SAC, k: int, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    output = _network(agent.actor.mlp, 0, _with_task(observation, k))
    mean, log_std = output[:A], output[A:].clamp(-20, 2)
    gaussian = torch.distributions.Normal(mean, log_std.exp())
    x = mean + log_std.exp() * noise
    action = x.tanh()
    return action, (gaussian.log_prob(x) - (1 - action**2).log()).sum()


def _temperature(agent: SAC, k: int) -> float:
    return math.exp(agent.log_temperatures.detach()[k])


def _target(agent: SAC, batch: Batch, k: int, b: int, noise: Tensor) -> Tensor:
    config = agent.config
    action, log_density = _act(agent, k, batch.next_observations[k, b], noise[k, b])
    value = _value(agent, agent.target_critics, k, batch.next_observations[k, b], action)
    soft_value = value - _temperature(agent, k) * log_density
    reward = config.reward_scale * batch.rewards[k, b]
    return (
        reward
        if batch.terminated[k, b]
        else reward + config.discount ** batch.steps[k, b] * soft_value
    )


def _critic_loss(agent: SAC, batch: Batch, targets: Tensor, k: int) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for b in range(B):
        x = _with_task(torch.cat([batch.observations[k, b], batch.actions[k, b]]), k)
        for member in range(2):
            output = _network(agent.critics.mlp, member, x)
            total = total + _error(agent.config, output, targets[k, b])
    return total / B


def _actor_loss(agent: SAC, batch: Batch, noise: Tensor, k: int) -> tuple[Tensor, Tensor]:
    losses, log_densities = [], []
    for b in range(B):
        observation = batch.observations[k, b]
        action, log_density = _act(agent, k, observation, noise[k, b])
        value = _value(agent, agent.critics, k, observation, action)
        losses.append(_temperature(agent, k) * log_density - value)
        log_densities.append(log_density)
    return sum(losses) / B, torch.stack(log_densities)


def _rows(losses: list[Tensor], module: nn.Module) -> dict[Tensor, Tensor]:
    parameters = tuple(module.parameters())
    gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
    return {key: torch.stack(column) for key, *column in zip(parameters, *gradients, strict=True)}


@every_variant
def test_target_values_are_the_references(make_agent, make_batch, options):
    agent, batch, noise = make_agent(double=True, **options), make_batch(), _noise(1)
    with torch.no_grad():
        expected = torch.stack(
            [torch.stack([_target(agent, batch, k, b, noise) for b in range(B)]) for k in range(K)]
        )
    targets = agent.target_values(batch, noise)
    assert not targets.requires_grad
    torch.testing.assert_close(targets, expected, **EXACT)


@every_variant
def test_critic_losses_and_gradients_are_the_references(make_agent, make_batch, options):
    agent, batch = make_agent(double=True, **options), make_batch()
    targets = agent.target_values(batch, _noise(1))
    expected = [_critic_loss(agent, batch, targets, k) for k in range(K)]
    tape = Tape()
    losses = agent.critic_losses(batch, targets, tape)
    torch.testing.assert_close(losses, torch.stack(expected), **EXACT)
    torch.testing.assert_close(
        rows(jacobian(losses, tape)), _rows(expected, agent.critics), **EXACT
    )


@every_variant
def test_actor_losses_and_gradients_are_the_references(make_agent, make_batch, options):
    agent, batch, noise = make_agent(double=True, **options), make_batch(), _noise(2)
    expected, log_densities = zip(
        *(_actor_loss(agent, batch, noise, k) for k in range(K)), strict=True
    )
    tape = Tape()
    losses, actual_log_densities = agent.actor_losses(batch, noise, tape)
    torch.testing.assert_close(losses, torch.stack(expected), **EXACT)
    torch.testing.assert_close(actual_log_densities, torch.stack(log_densities), **EXACT)
    torch.testing.assert_close(
        rows(jacobian(losses, tape)), _rows(list(expected), agent.actor), **EXACT
    )


def test_targets_look_at_the_next_observation_alone(make_agent, make_batch):
    agent, batch = make_agent(double=True), make_batch()
    targets = agent.target_values(batch, _noise(1))
    other = make_batch(1)
    now = replace(batch, observations=other.observations, actions=other.actions)
    assert torch.equal(agent.target_values(now, _noise(1)), targets)
    then = replace(batch, next_observations=other.next_observations)
    goes_on = batch.terminated == 0
    assert (agent.target_values(then, _noise(1)) != targets)[goes_on].all()


def test_termination_cuts_the_future_off_and_nothing_else_does(make_agent, make_batch):
    agent, batch = make_agent(double=True), make_batch()
    ended = replace(batch, terminated=torch.ones(K, B, dtype=torch.float64))
    reward = agent.config.reward_scale * batch.rewards
    torch.testing.assert_close(agent.target_values(ended, _noise(1)), reward)
    # A time limit leaves `terminated` at 0.
    cut_short = replace(batch, terminated=torch.zeros(K, B, dtype=torch.float64))
    assert (agent.target_values(cut_short, _noise(1)) != reward).all()


def test_deterministic_actions_are_the_policys_mode_and_draw_nothing(make_agent):
    agent = make_agent(double=True)
    observations = torch.randn(K, 4, O, generator=torch.Generator().manual_seed(0)).double()
    before = agent.state_dict()["noise_generator"].clone()
    actions = agent.act(observations, deterministic=True)
    assert torch.equal(agent.state_dict()["noise_generator"], before)
    assert not actions.requires_grad
    for k in range(K):
        for n in range(4):
            expected, _ = _act(agent, k, observations[k, n], torch.zeros(A))
            torch.testing.assert_close(actions[k, n], expected, **EXACT)
