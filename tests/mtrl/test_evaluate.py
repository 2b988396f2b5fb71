import numpy as np
import pytest
import torch

import envs
from agents import SAC, SACConfig
from envs.toy import TOY_TASKS, ToyVectorEnv
from envs.vector import VectorOptions
from mtrl.evaluate import Evaluation, evaluate
from mtrl.state_tree import pack

EPISODE_STEPS = 25
TURNS = {"toy-reach": 0, "toy-left": 1, "toy-mirror": 2, "toy-right": 3}


def make_envs(envs_per_task, benchmark="toy", **options):
    options = {"seed": 0, "goals": "once", "one_hot": False} | options
    return envs.make_vec(benchmark, envs_per_task=envs_per_task, **options)


class HandWrittenAgent:
    """Moves by a rule on the observed goal and position, knowing each task's target."""

    generators = ()

    def __init__(self, rule, task_names):
        self._rule = rule
        self._turns = [TURNS[name] for name in task_names]

    def act(self, observations, *, deterministic=False):
        assert deterministic
        goals = observations[..., 2:].clone()
        for k, turns in enumerate(self._turns):
            for _ in range(turns):
                goals[k] = torch.stack([-goals[k, :, 1], goals[k, :, 0]], dim=-1)
        return self._rule(observations[..., :2], goals)

    def update(self, batch):
        raise AssertionError("an evaluation must not train")

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def walk_to_the_target(position, target):
    return ((target - position) / 0.1).clamp(-1, 1)


def walk_through_the_target(position, target):
    return target / target.norm(dim=-1, keepdim=True)


def stay(position, target):
    return torch.zeros_like(position)


def play(rule, envs_per_task=5, **options):
    environments = make_envs(envs_per_task, **options)
    agent = HandWrittenAgent(rule, environments.task_names)
    return evaluate(agent, environments)


@pytest.mark.parametrize("envs_per_task", [1, 5, 20, 50, 60])
def test_every_goal_of_every_task_is_played_once_and_recorded_as_itself(envs_per_task):
    targets = torch.tensor(_goals(), dtype=torch.float32)
    chosen = torch.arange(50) % 3 == 0

    def solve_chosen_goals(position, target):
        # Distances from the origin tell the goals apart, whichever way a task turns them.
        radius = target.norm(dim=-1, keepdim=True)
        index = (radius - targets.norm(dim=-1)).abs().argmin(dim=-1)
        return walk_to_the_target(position, target) * chosen[index][..., None]

    evaluation = play(solve_chosen_goals, envs_per_task)
    np.testing.assert_array_equal(evaluation.success, np.tile(chosen, (4, 1)))
    assert evaluation.success_rate == pytest.approx(17 / 50)


def _goals():
    """The 50 goals of the toy tasks, as an agent sees them."""
    observations, _ = make_envs(50, "toy-reach").reset()
    return observations[:, 2:]


def test_returns_are_the_undiscounted_sums_of_rewards():
    evaluation = play(stay)
    expected = EPISODE_STEPS * 10 * np.exp(-2 * np.linalg.norm(_goals(), axis=1))
    np.testing.assert_allclose(evaluation.returns, np.tile(expected, (4, 1)), rtol=1e-6)
    assert not evaluation.success.any()


def test_success_at_any_step_counts():
    evaluation = play(walk_through_the_target)
    assert evaluation.success.all()
    # It does not stay there: an agent that arrives and stays collects far more.
    assert (evaluation.returns < 0.7 * play(walk_to_the_target).returns).all()


@pytest.mark.parametrize("envs_per_task", [1, 7, 50])
def test_ending_with_success_changes_no_success(envs_per_task):
    def solve_near_ones(position, target):
        near = target.norm(dim=-1, keepdim=True) < 0.8
        return walk_through_the_target(position, target) * near

    whole = play(solve_near_ones, envs_per_task)
    ended = play(solve_near_ones, envs_per_task, ends_with_success=True)
    assert 0 < whole.success_rate < 1
    np.testing.assert_array_equal(whole.success, ended.success)
    solved = whole.success > 0
    assert (ended.returns[solved] < whole.returns[solved]).all()
    np.testing.assert_array_equal(ended.returns[~solved], whole.returns[~solved])
    # A return that ends early must not be mistaken for another.
    assert "eval/return_until_success/toy-reach" in ended.metrics()
    assert "eval/return/toy-reach" not in ended.metrics()


def test_evaluating_changes_nothing_of_the_agent_and_repeats_itself():
    environments = make_envs(50)
    config = SACConfig(critic_width=8, critic_depth=1, actor_width=8, actor_depth=1)
    agent = SAC(config, num_tasks=4, observation_size=4, action_size=2, seed=0)
    structure, arrays = pack(agent.state_dict())
    before = structure, {name: array.clone() for name, array in arrays.items()}
    first, second = (evaluate(agent, environments) for _ in range(2))
    np.testing.assert_array_equal(first.returns, second.returns)
    structure, arrays = pack(agent.state_dict())
    assert structure == before[0]
    assert all(torch.equal(array, before[1][name]) for name, array in arrays.items())


def test_a_stop_gives_up_and_the_next_evaluation_is_whole():
    environments = make_envs(5)
    agent = HandWrittenAgent(walk_to_the_target, environments.task_names)
    answers = iter([False] * 30)
    assert evaluate(agent, environments, stop=lambda: next(answers, True)) is None
    assert evaluate(agent, environments).success.all()


def test_metrics_name_every_task():
    metrics = play(walk_to_the_target).metrics()
    assert metrics.pop("eval/success_rate") == 1.0
    names = {f"eval/{kind}/{task}" for kind in ("success_rate", "return") for task in TURNS}
    assert metrics.keys() == names
    assert all(metrics[f"eval/success_rate/{task}"] == 1.0 for task in TURNS)


class BreakingOff(ToyVectorEnv):
    """Toy tasks of which one row of toy-left breaks off in each of some steps."""

    def __init__(self, quantity, value, last_step, first_step=0):
        options = VectorOptions(
            seed=0, envs_per_task=5, max_episode_steps=25, goals="once", one_hot=False
        )
        super().__init__(TOY_TASKS, options, goal_seed=0)
        self._fault = quantity, value
        self._first_step, self._last_step = first_step, last_step

    def _end_step(self):
        outcome = super()._end_step()
        quantity, value = self._fault
        self._first_step -= 1
        self._last_step -= 1
        if self._first_step < 0 <= self._last_step:
            if quantity == "diverged":
                outcome.infos["diverged"] = np.arange(self.num_envs) == 7
                self._elapsed[7] = self.max_episode_steps - 1
            else:
                getattr(outcome, quantity)[7] = value
        return outcome


@pytest.mark.parametrize(
    ("quantity", "value"),
    [("diverged", True), ("rewards", np.nan), ("rewards", np.inf), ("observations", np.nan)],
)
@pytest.mark.parametrize(("last_step", "lost"), [(3, 3), (10**9, 10)])
def test_an_episode_that_breaks_off_is_not_played(caplog, quantity, value, last_step, lost):
    environments = BreakingOff(quantity, value, last_step)
    agent = HandWrittenAgent(walk_to_the_target, environments.task_names)
    evaluation = evaluate(agent, environments)
    assert np.isnan(evaluation.success).sum() == np.isnan(evaluation.returns).sum() == lost
    assert np.isnan(evaluation.success[1]).sum() == lost
    assert evaluation.num_played == 200 - lost
    assert evaluation.success_rate == 1.0
    assert all(np.isfinite(value) for value in evaluation.metrics().values())
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith(f"{lost} of 200 episodes of an evaluation broke off ")
    assert message.endswith(": toy-left")


@pytest.mark.parametrize(
    ("quantity", "value"), [("diverged", True), ("rewards", np.nan), ("observations", np.nan)]
)
def test_what_breaks_off_after_success_has_succeeded(quantity, value):
    # The target is reached after 20 steps at most and episodes have 25.
    environments = BreakingOff(quantity, value, last_step=24, first_step=23)
    agent = HandWrittenAgent(walk_to_the_target, environments.task_names)
    evaluation = evaluate(agent, environments)
    assert (evaluation.success == 1).all()
    assert np.isnan(evaluation.returns).sum() == np.isnan(evaluation.returns[1]).sum() == 1


def test_without_an_episode_there_is_no_success_rate():
    nothing = np.full((1, 50), np.nan)
    evaluation = Evaluation(["reach-v3"], nothing, nothing)
    assert evaluation.success_rate is None
    assert evaluation.metrics() == {}
