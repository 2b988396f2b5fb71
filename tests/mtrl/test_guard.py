"""Numbers that are not finite, from real environments and a real agent gone wrong."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from agents import SAC, SACConfig
from envs.toy import TOY_TASKS, ToyVectorEnv
from envs.vector import VectorOptions
from mtrl.guard import Guard, NonFiniteError, first_not_finite
from mtrl.replay import Replay
from mtrl.train import Schedule, Trainer

K, N, EPISODE = 4, 2, 10
ROW = 3  # the second environment of toy-left
SCHEDULE = Schedule(
    total_steps=60 * K * N,
    warmup_steps=5 * K * N,
    batch_size=4,
    update_ratio=1.0,
    log_every=10 * K * N,
    eval_every=10**9,
    checkpoint_every=10**9,
)


class GoingWrong(ToyVectorEnv):
    """Toy tasks, some rows of which give `value` as their `quantity` from `start` to `end`."""

    def __init__(self, quantity, value, start, end, rows=ROW):
        options = VectorOptions(
            seed=1, envs_per_task=N, max_episode_steps=EPISODE, goals="random", one_hot=False
        )
        super().__init__(TOY_TASKS, options, goal_seed=1)
        self._fault = quantity, value, range(start, end), rows
        self.steps = 0

    def _end_step(self):
        outcome = super()._end_step()
        quantity, value, when, rows = self._fault
        self.steps += 1
        if self.steps in when:
            getattr(outcome, quantity)[rows] = value
        return outcome


class Lines(list):
    def log(self, metrics):
        self.append(dict(metrics))

    def close(self):
        pass


@pytest.fixture
def train():
    """Train SAC in given environments; return the trainer, which `before` may prepare."""

    def train(envs, before=lambda trainer: None, agent=None, **changes):
        config = SACConfig(
            critic_width=8, critic_depth=1, actor_width=8, actor_depth=1, **(agent or {})
        )
        trainer = Trainer(
            agent=SAC(config, num_tasks=K, observation_size=4, action_size=2, seed=1),
            envs=envs,
            replay=Replay(K, 1000, 4, 2, generator=torch.Generator().manual_seed(1)),
            schedule=dataclasses.replace(SCHEDULE, **changes),
            logger=Lines(),
            evaluate=lambda agent: None,
            save=lambda state, env_steps: None,
            stop=lambda: False,
            generator=torch.Generator().manual_seed(1),
        )
        before(trainer)
        trainer.run()
        return trainer

    return train


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("quantity", "value", "episodes"),
    [
        *[("observations", value, 3) for value in (math.nan, math.inf, -math.inf)],
        ("rewards", math.nan, 3),
        ("rewards", 1e300, 2),  # more than float32 can hold, but no reason to end an episode
    ],
)
def test_what_environments_give_is_kept_out_named_and_counted(
    train, caplog, quantity, value, episodes
):
    trainer = train(GoingWrong(quantity, value, 20, 23))
    assert first_not_finite(trainer.state_dict()) is None
    (warning,) = warnings(caplog)
    assert warning.startswith(f"{quantity[:-1]} of toy-left is not finite at step {19 * K * N}: ")
    last = trainer.logger[-1]
    dropped = {name: value for name, value in last.items() if "dropped" in name}
    assert dropped == {"train/dropped_episodes/toy-left": episodes}
    assert last["gradients/critic/skipped"] == last["gradients/actor/skipped"] == 0
    assert trainer.progress.updates == 55 * K * N // K


def test_an_environment_that_stays_broken_ends_the_training(train):
    envs, trainers = GoingWrong("rewards", math.nan, 20, 10**9), []
    with pytest.raises(NonFiniteError, match=r"toy-left had 100 steps in a row .* up to step 952"):
        train(envs, trainers.append, total_steps=200 * K * N)
    # What is stored to look into it is of one moment: all that was simulated has been taken in.
    state = trainers[0].state_dict()
    assert state["progress"]["env_steps"] == envs.steps * K * N
    seen = envs.get_state()["observations"].reshape(K, N, 4)
    np.testing.assert_allclose(state["observations"], seen, rtol=1e-6)


class Diverging(ToyVectorEnv):
    """Toy tasks; from the 20th step on, one row's simulation gives up on each."""

    steps = 0

    def _end_step(self):
        outcome = super()._end_step()
        self.steps += 1
        diverged = np.zeros(K * N, np.bool_)
        diverged[ROW] = self.steps >= 20
        return dataclasses.replace(outcome, infos={**outcome.infos, "diverged": diverged})


def test_a_simulation_that_diverges_in_each_step_ends_the_training(train):
    options = VectorOptions(
        seed=1, envs_per_task=N, max_episode_steps=EPISODE, goals="random", one_hot=False
    )
    message = (
        "toy-left had 100 steps in a row that were lost as its simulation diverged, up to step"
    )
    with pytest.raises(NonFiniteError, match=f"{message} {119 * K * N}"):
        train(Diverging(TOY_TASKS, options, goal_seed=1), total_steps=200 * K * N)


def test_a_loss_that_overflows_leaves_the_other_tasks_learning(train, caplog):
    def remember(trainer):
        before.update(
            {name: value.clone() for name, value in trainer.agent.critics.state_dict().items()}
        )

    before: dict[str, torch.Tensor] = {}
    trainer = train(GoingWrong("rewards", 1e30, 10, 11), remember)
    assert all(message.startswith("train/critic_loss of toy-left") for message in warnings(caplog))
    assert warnings(caplog)
    assert first_not_finite(trainer.state_dict()) is None
    assert trainer.logger[-1]["gradients/critic/skipped"] == 0
    after = trainer.agent.critics.state_dict()
    assert all(not torch.equal(after[name], value) for name, value in before.items())


def test_a_task_whose_loss_stays_broken_ends_the_training(train):
    with pytest.raises(NonFiniteError, match=r"train/critic_loss of toy-left was not finite in"):
        train(GoingWrong("rewards", 1e30, 1, 10**9, slice(2, 4)), total_steps=100 * K * N)


@pytest.mark.parametrize("network", ["critics", "actor"])
def test_a_poisoned_weight_is_found(train, network):
    def poison(trainer):
        with torch.no_grad():
            next(getattr(trainer.agent, network).parameters()).view(-1)[0] = math.nan
        trainers.append(trainer)

    trainers: list[Trainer] = []
    with pytest.raises(NonFiniteError, match="in a row"):
        train(GoingWrong("rewards", 0, 0, 0), poison, total_steps=200 * K * N)
    (trainer,) = trainers
    state = trainer.state_dict()
    assert first_not_finite(state["replay"]) is None
    assert first_not_finite(state["agent"]).startswith(network)


def test_a_gradient_is_named_also_where_the_losses_are_finite_and_no_gramian_is_found(train):
    def break_gradient(trainer):
        losses = trainer.agent.critic_losses
        trainer.agent.critic_losses = lambda *inputs: (
            (loss := losses(*inputs)) + (0 * loss).sqrt()  # adds 0, whose derivative is NaN
        )

    weightings = {"critic_weighting": "uniform", "actor_weighting": "uniform"}
    with pytest.raises(NonFiniteError, match=r"gradients/critic/total_norm was not finite in"):
        train(
            GoingWrong("rewards", 0, 0, 0),
            break_gradient,
            agent={**weightings, "watch_conflicts": False},
            total_steps=200 * K * N,
        )


def test_a_sound_training_is_not_disturbed(train, caplog):
    trainer = train(GoingWrong("rewards", 0, 0, 0))
    assert warnings(caplog) == []
    assert not any("dropped" in name for line in trainer.logger for name in line)


def test_who_saw_something_broken_before_a_stop_is_still_left_out_after_it():
    guard, resumed = Guard(["a", "b"], 1), Guard(["a", "b"], 1)
    broken = np.array([[0.0], [math.nan]])
    none = np.zeros(2, np.bool_)
    assert guard.step(broken, np.zeros(2), np.zeros((2, 1)), none, 0).tolist() == [False, False]
    resumed.load_state_dict(guard.state_dict())
    sound = np.zeros((2, 1))
    assert resumed.step(sound, np.zeros(2), sound, none, 2).tolist() == [False, True]
    assert resumed.step(sound, np.zeros(2), sound, none, 4).tolist() == [False, False]
    with pytest.raises(ValueError, match="shape"):
        Guard(["a"], 1).load_state_dict(guard.state_dict())


def test_updates_in_a_row_go_on_being_counted_after_a_stop(caplog):
    guard = Guard(["a", "b"], 1, max_in_a_row=5)
    broken = {"loss": torch.tensor([1.0, math.nan]), "norm": torch.tensor(0.0)}
    for update in range(5):
        guard.update(broken)
        if update == 1:
            guard.check_updates(10)
        resumed = Guard(["a", "b"], 1, max_in_a_row=5)
        resumed.load_state_dict(guard.state_dict())
        guard = resumed
    guard.update({name: torch.zeros_like(value) for name, value in broken.items()})
    assert "loss of b was not finite in 2 updates up to step 10" in caplog.text
    with pytest.raises(NonFiniteError, match=r"loss of b .* in 3 updates .* step 20, 5 in a row"):
        guard.check_updates(20)


def test_counts_that_are_no_guards_are_refused():
    state = Guard(["a"], 1).state_dict()
    for counts in (torch.zeros(2, 3), torch.zeros(3), torch.zeros(3, 2, dtype=torch.float64)):
        with pytest.raises(ValueError, match="`updates`"):
            Guard(["a"], 1).load_state_dict({**state, "updates": counts})
