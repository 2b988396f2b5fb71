"""SAC's updates against plain torch; what they leave alone, report and remember."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from agents import SAC, SACConfig
from agents.networks import MLP
from mtrl.gradients import Tape, jacobian, rows
from mtrl.types import Agent, Batch

pytestmark = pytest.mark.usefixtures("both_ways")

K, B, O, A = 3, 5, 4, 2  # noqa: E741
WEIGHTINGS = ("uniform", "pcgrad", "gradnorm", "gradnorm+pcgrad")


def _noise(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(K, B, A, generator=generator, dtype=torch.float64)


def _assert_identical(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


class PlainSAC:
    """The same algorithm in plain torch: `nn.Linear`, one mean loss, autograd, Adam."""

    def __init__(self, agent: SAC) -> None:
        self.config = agent.config
        self.actor = self._copy(agent.actor.mlp, 0)
        self.critics = nn.ModuleList(self._copy(agent.critics.mlp, e) for e in range(2))
        self.targets = nn.ModuleList(self._copy(agent.target_critics.mlp, e) for e in range(2))
        self.log_temperatures = agent.log_temperatures.detach().clone().requires_grad_()
        self.critic_adam = torch.optim.Adam(
            self.critics.parameters(), lr=self.config.critic_learning_rate, eps=1e-5
        )
        self.actor_adam = torch.optim.Adam(
            self.actor.parameters(), lr=self.config.actor_learning_rate, eps=1e-5
        )
        self.temperature_adam = torch.optim.Adam(
            [self.log_temperatures], lr=self.config.temperature_learning_rate
        )

    @staticmethod
    def _copy(mlp: MLP, member: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
            if layers:
                layers += [nn.LayerNorm(len(weight[0]), elementwise_affine=False), nn.ReLU()]
            layer = nn.Linear(*weight.shape[1:], dtype=torch.float64)
            layer.weight.data = weight.data[member].T.clone()
            layer.bias.data = bias.data[member, 0].clone()
            layers.append(layer)
        return nn.Sequential(*layers)

    def _sample(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        one_hot = torch.eye(K, dtype=torch.float64)[:, None].expand(K, B, K)
        output = self.actor(torch.cat([observations, one_hot], dim=-1))
        mean, log_std = output[..., :A], output[..., A:].clamp(-20, 2)
        gaussian = mean + log_std.exp() * noise
        density = torch.distributions.Normal(mean, log_std.exp()).log_prob(gaussian)
        actions = gaussian.tanh()
        return actions, (density - (1 - actions**2).log()).sum(dim=-1)

    @staticmethod
    def _values(critics: nn.ModuleList, observations: Tensor, actions: Tensor) -> Tensor:
        one_hot = torch.eye(K, dtype=torch.float64)[:, None].expand(K, B, K)
        inputs = torch.cat([observations, actions, one_hot], dim=-1)
        return torch.stack([critic(inputs)[..., 0] for critic in critics])

    def update(self, batch: Batch, critic_noise: Tensor, actor_noise: Tensor) -> None:
        config = self.config
        with torch.no_grad():
            temperatures = self.log_temperatures.exp()[:, None]
            actions, densities = self._sample(batch.next_observations, critic_noise)
            values = self._values(self.targets, batch.next_observations, actions).amin(dim=0)
            future = config.discount**batch.steps * (values - temperatures * densities)
            targets = config.reward_scale * batch.rewards + future * (batch.terminated == 0)
        values = self._values(self.critics, batch.observations, batch.actions)
        self._descend((values - targets).square().mean(dim=(1, 2)).sum(), self.critic_adam)

        actions, densities = self._sample(batch.observations, actor_noise)
        values = self._values(self.critics, batch.observations, actions).amin(dim=0)
        self._descend((temperatures * densities - values).mean(), self.actor_adam)

        self.temperature_adam.zero_grad()
        surplus = -densities.detach() - config.target_entropy
        (self.log_temperatures.exp()[:, None] * surplus).mean(dim=1).sum().backward()
        self.temperature_adam.step()
        with torch.no_grad():
            for target, source in zip(
                self.targets.parameters(), self.critics.parameters(), strict=True
            ):
                target += config.target_rate * (source - target)

    def _descend(self, loss: Tensor, adam: torch.optim.Adam) -> None:
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(adam.param_groups[0]["params"], self.config.max_gradient_norm)
        adam.step()


@pytest.mark.parametrize("max_gradient_norm", [0.3, 1e6])
def test_uniform_updates_are_those_of_plain_torch_on_the_mean_loss(
    make_agent, make_batch, max_gradient_norm
):
    agent = make_agent(
        double=True,
        critic_weighting="uniform",
        actor_weighting="uniform",
        max_gradient_norm=max_gradient_norm,
        critic_learning_rate=1e-3,
        actor_learning_rate=3e-4,
        temperature_learning_rate=2e-4,
        target_rate=0.05,
    )
    plain = PlainSAC(agent)
    generator = torch.Generator()
    for step in range(8):
        batch = make_batch(step)
        generator.set_state(agent.state_dict()["noise_generator"])
        noises = [torch.randn(K, B, A, generator=generator).double() for _ in range(2)]
        agent.update(batch)
        plain.update(batch, *noises)
    for mlp, networks in (
        (agent.actor.mlp, [plain.actor]),
        (agent.critics.mlp, plain.critics),
        (agent.target_critics.mlp, plain.targets),
    ):
        for member, network in enumerate(networks):
            linears = [layer for layer in network if isinstance(layer, nn.Linear)]
            for weight, bias, layer in zip(mlp.weights, mlp.biases, linears, strict=True):
                torch.testing.assert_close(weight[member].T, layer.weight, rtol=0, atol=1e-8)
                torch.testing.assert_close(bias[member, 0], layer.bias, rtol=0, atol=1e-8)
    torch.testing.assert_close(agent.log_temperatures, plain.log_temperatures, rtol=0, atol=1e-10)


def _everything_per_task(agent: SAC, batch: Batch) -> dict[str, Tensor]:
    targets = agent.target_values(batch, _noise(1).to(batch.rewards.dtype))
    critic_tape, actor_tape = Tape(), Tape()
    critic_losses = agent.critic_losses(batch, targets, critic_tape)
    actor_losses, log_densities = agent.actor_losses(
        batch, _noise(2).to(batch.rewards.dtype), actor_tape
    )
    critic_rows = rows(jacobian(critic_losses, critic_tape)).values()
    actor_rows = rows(jacobian(actor_losses, actor_tape)).values()
    return {
        "targets": targets,
        "critic_losses": critic_losses.detach(),
        "actor_losses": actor_losses.detach(),
        "log_densities": log_densities,
        **{f"critic {i}": row for i, row in enumerate(critic_rows)},
        **{f"actor {i}": row for i, row in enumerate(actor_rows)},
    }


@pytest.mark.parametrize("changed", range(K))
@pytest.mark.parametrize("value", [None, float("nan")])
def test_tasks_do_not_leak_into_each_other(make_agent, make_batch, changed, value):
    agent = make_agent()
    batch, other = make_batch(0, torch.float32), make_batch(1, torch.float32)
    before = _everything_per_task(agent, batch)
    fields = {name: tensor.clone() for name, tensor in vars(batch).items()}
    for name, tensor in fields.items():
        tensor[changed] = vars(other)[name][changed] if value is None else value
    after = _everything_per_task(agent, Batch(**fields))
    rest = [k for k in range(K) if k != changed]
    for name in before:
        _assert_identical(after[name][rest], before[name][rest])
        assert not torch.equal(after[name][changed], before[name][changed]), name


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_temperatures_of_other_tasks_do_not_change_with_a_tasks_data(
    make_agent, make_batch, weighting
):
    agents = [make_agent(critic_weighting=weighting, actor_weighting=weighting) for _ in range(2)]
    batch = make_batch(0, torch.float32)
    observations = batch.observations.clone()
    observations[1] += 1
    agents[0].update(batch)
    agents[1].update(replace(batch, observations=observations))
    one, other = (agent.log_temperatures.detach() for agent in agents)
    _assert_identical(one[[0, 2]], other[[0, 2]])


def test_update_draws_different_noise_for_critics_and_actor(make_agent, make_batch):
    """With targets and critics alike, both would otherwise judge the very same actions."""
    agent = make_agent()
    seen = []
    draw = agent._noise
    agent._noise = lambda like: seen.append(draw(like)) or seen[-1]
    agent.update(make_batch(0, torch.float32))
    assert [noise.shape for noise in seen] == [(K, B, A)] * 2
    assert len(torch.stack(seen).unique()) == 2 * K * B * A


def test_temperature_rises_where_entropy_is_below_its_target(make_agent, make_batch):
    for target, direction in ((50.0, 1), (-50.0, -1)):
        agent = make_agent(target_entropy=target)
        before = agent.log_temperatures.detach().clone()
        entropies = agent.update(make_batch(0, torch.float32))["train/entropy"]
        assert ((target - entropies).sign() == direction).all()
        assert ((agent.log_temperatures.detach() - before).sign() == direction).all()


def test_the_entropy_is_that_of_the_policy_before_the_update(make_agent, make_batch):
    agent, batch = make_agent(), make_batch(0, torch.float32)
    twin = copy.deepcopy(agent)
    twin._noise(batch.actions)  # as for the targets
    _, log_densities = twin.actor_losses(batch, twin._noise(batch.actions))
    entropies = agent.update(batch)["train/entropy"]
    torch.testing.assert_close(entropies, -log_densities.mean(dim=1))


def _learned(agent: SAC, network: str) -> dict[str, object]:
    state = agent.state_dict()
    return copy.deepcopy([state[network], state[f"{network.rstrip('s')}_optimizer"]["adam"]])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_reward_that_is_not_a_number_leaves_the_critics_as_they_were(
    make_agent, make_batch, weighting
):
    agent = make_agent(critic_weighting=weighting, actor_weighting=weighting)
    agent.update(make_batch(0, torch.float32))
    batch = make_batch(1, torch.float32)
    batch.rewards[1, 2] = float("nan")
    before = _learned(agent, "critics")
    metrics = agent.update(batch)
    _assert_identical(_learned(agent, "critics"), before)
    assert metrics["gradients/critic/skipped"] == 1
    assert metrics["gradients/actor/skipped"] == 0  # the actor does not look at rewards
    assert agent.log_temperatures.isfinite().all()
    assert all(p.isfinite().all() for p in agent.target_critics.parameters())

    metrics = agent.update(make_batch(2, torch.float32))
    assert metrics["gradients/critic/skipped"] == 1  # no more than before
    assert all(metric.isfinite().all() for metric in metrics.values())
    assert not torch.equal(
        _learned(agent, "critics")[0]["mlp.weights.0"], before[0]["mlp.weights.0"]
    )


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_observation_that_is_not_a_number_leaves_all_networks_as_they_were(
    make_agent, make_batch, weighting
):
    agent = make_agent(critic_weighting=weighting, actor_weighting=weighting)
    agent.update(make_batch(0, torch.float32))
    batch = make_batch(1, torch.float32)
    batch.observations[2, 0, 1] = float("inf")
    before = [_learned(agent, network) for network in ("critics", "actor")]
    metrics = agent.update(batch)
    _assert_identical([_learned(agent, network) for network in ("critics", "actor")], before)
    assert metrics["gradients/critic/skipped"] == metrics["gradients/actor/skipped"] == 1
    assert agent.log_temperatures.isfinite().all()
    metrics = agent.update(make_batch(2, torch.float32))
    assert all(metric.isfinite().all() for metric in metrics.values())


def test_actors_gradnorm_judges_rates_by_the_critics_losses(make_agent, make_batch):
    agent = make_agent(actor_weighting="gradnorm", gradnorm_actor_alpha=0.5)
    metrics = agent.update(make_batch(0, torch.float32))
    weighting = agent.actor_optimizer.weighting
    _assert_identical(weighting.initial_losses, metrics["train/critic_loss"])
    assert weighting.alpha == 0.5


def test_update_reports_what_is_logged(make_agent, make_batch):
    metrics = make_agent().update(make_batch(0, torch.float32))
    per_task = {"train/critic_loss", "train/actor_loss", "train/temperature", "train/entropy"}
    alone = set()
    for network in ("critic", "actor"):
        per_task |= {f"weights/{network}", f"gradients/{network}/norm"}
        alone |= {
            f"gradients/{network}/{k}"
            for k in ("conflict_rate", "cosine_min", "skipped", "total_norm")
        }
    assert set(metrics) == per_task | alone
    assert all(metrics[name].shape == (K,) for name in per_task)
    assert all(metrics[name].shape == () for name in alone)
    assert not any(metric.requires_grad for metric in metrics.values())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("updates_before", [0, 3])
def test_state_continues_bit_for_bit(make_agent, make_batch, weighting, updates_before):
    options = {
        "critic_weighting": weighting,
        "actor_weighting": weighting,
        "exploration_correlation": 0.9,
        "normalize_rewards": True,
    }
    agent = make_agent(**options)
    for step in range(updates_before):
        agent.update(make_batch(step, torch.float32))
        agent.act(make_batch(step, torch.float32).observations)
    saved = copy.deepcopy(agent.state_dict())
    resumed = make_agent(seed=1, **options)
    resumed.update(make_batch(9, torch.float32))
    resumed.act(make_batch(9, torch.float32).observations)
    resumed.load_state_dict(saved)
    for step in range(10, 14):
        batch = make_batch(step, torch.float32)
        _assert_identical(resumed.act(batch.observations), agent.act(batch.observations))
        _assert_identical(resumed.update(batch), agent.update(batch))
    _assert_identical(resumed.state_dict(), agent.state_dict())


def test_runs_repeat_by_seed_and_leave_the_global_generator_alone(make_agent, make_batch):
    def run(seed: int) -> dict[str, object]:
        agent = make_agent(seed)
        for step in range(3):
            agent.act(make_batch(step, torch.float32).observations)
            agent.update(make_batch(step, torch.float32))
        return agent.state_dict()

    before = torch.get_rng_state()
    first, again, other = run(0), run(0), run(1)
    _assert_identical(torch.get_rng_state(), before)
    _assert_identical(again, first)
    name = "mlp.weights.0"
    assert not torch.equal(first["actor"][name], other["actor"][name])


def test_deterministic_actions_are_those_of_the_actors_running_average(make_agent, make_batch):
    agent = make_agent(actor_average_rate=0.1)
    observations = make_batch(0, torch.float32).observations
    expected = [parameter.detach().clone() for parameter in agent.actor.parameters()]
    for seed in range(5):
        agent.update(make_batch(seed, torch.float32))
        for average, parameter in zip(expected, agent.actor.parameters(), strict=True):
            average += 0.1 * (parameter.detach() - average)
    for average, parameter in zip(expected, agent.averaged_actor.parameters(), strict=True):
        torch.testing.assert_close(parameter, average, rtol=1e-5, atol=1e-7)
    actions = agent.act(observations, deterministic=True)
    assert torch.equal(actions, agent.averaged_actor(observations).mode())
    assert not torch.allclose(actions, agent.actor(observations).mode())


def test_averaging_changes_nothing_of_what_is_learned(make_agent, make_batch):
    agents = [make_agent(actor_average_rate=rate) for rate in (1.0, 0.01)]
    for seed in range(3):
        for agent in agents:
            agent.update(make_batch(seed, torch.float32))
    one, other = (agent.state_dict() for agent in agents)
    averaged = one.pop("averaged_actor"), other.pop("averaged_actor")
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(averaged[0], one["actor"], rtol=0, atol=0)
    observations = make_batch(9, torch.float32).observations
    sampled = [agent.act(observations) for agent in agents]
    assert torch.equal(*sampled)


def test_targets_begin_as_the_critics():
    agent = SAC(SACConfig(), num_tasks=2, observation_size=3, action_size=1, seed=0)
    _assert_identical(agent.target_critics.state_dict(), agent.critics.state_dict())
    assert isinstance(agent, Agent)


def test_the_weighting_does_not_change_the_action_noise(make_agent, make_batch):
    """Runs that differ in their weighting only are to be comparable seed by seed."""
    noises = []
    for name in ("uniform", "gradnorm+pcgrad"):
        agent = make_agent(critic_weighting=name, actor_weighting=name)
        agent.update(make_batch(0, torch.float32))
        noises.append(agent.state_dict()["noise_generator"])
    assert torch.equal(*noises)
