import dataclasses
import time

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import envs
from agents import SAC, SACConfig
from mtrl.checkpoint import load_latest, save_checkpoint
from mtrl.dispatch import portable
from mtrl.evaluate import evaluate
from mtrl.replay import Replay
from mtrl.train import Progress, Schedule, Trainer

K, N = 4, 2
STEP = K * N
FAR = 10**9
SCHEDULE = Schedule(
    total_steps=10 * STEP,
    warmup_steps=0,
    batch_size=3,
    update_ratio=1.0,
    log_every=FAR,
    eval_every=FAR,
    checkpoint_every=FAR,
)


class PushingAgent:
    """Pushes the same way always and counts its updates."""

    action = torch.tensor([0.5, -0.25])
    generators = ()

    def __init__(self):
        self.updates = 0

    def act(self, observations, *, deterministic=False):
        return self.action.expand(*observations.shape[:2], 2)

    def update(self, batch):
        assert batch.rewards.shape == (K, SCHEDULE.batch_size)
        self.updates += 1
        return {
            "train/critic_loss": torch.arange(float(K)) + self.updates,
            "gradients/critic/conflict_rate": torch.tensor(0.5),
        }

    def state_dict(self):
        return {"updates": self.updates}

    def load_state_dict(self, state):
        self.updates = state["updates"]


class Recorder:
    """A logger that keeps everything."""

    def __init__(self):
        self.records = []

    def log(self, metrics):
        self.records.append(dict(metrics))

    def close(self):
        pass

    def steps(self, kind):
        """Environment steps of the records that hold a metric of this kind."""
        return [
            record["progress/env_steps"]
            for record in self.records
            if any(name.startswith(kind) for name in record)
        ]


def make_sac(seed=1):
    config = SACConfig(
        critic_width=16,
        actor_width=16,
        normalize_rewards=True,
        task_embedding=4,
        learning_rate_half_life=100.0,
        reset_every=7,
    )
    return SAC(config, num_tasks=K, observation_size=4, action_size=2, seed=seed)


@pytest.fixture
def make_trainer():
    """Build a trainer on real toy environments; anything may be replaced."""

    def make(*, seed=1, episode_steps=5, capacity=500, agent=None, schedule=SCHEDULE, **options):
        evaluation_envs = envs.make_vec(
            "toy", seed=0, envs_per_task=50, goals="once", one_hot=False
        )
        defaults = {
            "evaluate": lambda agent: evaluate(agent, evaluation_envs),
            "save": lambda state, env_steps: None,
            "stop": lambda: False,
            "logger": Recorder(),
        }
        return Trainer(
            agent=agent or PushingAgent(),
            envs=envs.make_vec(
                "toy",
                seed=seed,
                envs_per_task=N,
                max_episode_steps=episode_steps,
                one_hot=False,
            ),
            replay=Replay(K, capacity, 4, 2, generator=torch.Generator().manual_seed(seed)),
            schedule=schedule,
            generator=torch.Generator().manual_seed(seed),
            **{**defaults, **options},
        )

    return make


def schedule(**changes):
    return dataclasses.replace(SCHEDULE, **changes)


@pytest.mark.parametrize("hundredths", [10, 25, 29, 100, 357])
@pytest.mark.parametrize("warmup", [0, 3 * STEP])
def test_updates_keep_the_ratio_exactly_after_every_step(make_trainer, hundredths, warmup):
    seen = []
    trainer = make_trainer(
        schedule=schedule(
            total_steps=60 * STEP, warmup_steps=warmup, update_ratio=hundredths / 100
        ),
        on_step=lambda progress: seen.append((progress.env_steps, progress.updates)),
    )
    assert trainer.run()
    steps = range(STEP, 61 * STEP, STEP)
    assert seen == [(n, max(0, n - warmup) * hundredths // (100 * K)) for n in steps]
    assert trainer.agent.updates == trainer.progress.updates


def test_transitions_hold_what_the_step_led_to_also_at_the_end_of_an_episode(make_trainer, stored):
    trainer = make_trainer(episode_steps=5, schedule=schedule(total_steps=13 * STEP))
    trainer.run()
    transitions = stored(trainer.replay)
    before, after = transitions.observations, transitions.next_observations
    torch.testing.assert_close(after[..., :2], before[..., :2] + 0.1 * transitions.actions)
    assert torch.equal(after[..., 2:], before[..., 2:])  # the goal, which a new episode changes
    by_time = before.view(K, 13, N, 4)
    assert (by_time[:, 5:11:5, :, :2] == 0).all(), "an episode begins at the origin"
    assert (by_time[:, 4:10:5, :, :2] != 0).all()
    assert (transitions.terminated == 0).all(), "a time limit does not terminate"


def test_warm_up_actions_are_random_reproducible_and_end_with_the_warm_up(make_trainer, stored):
    def actions(seed):
        trainer = make_trainer(seed=seed, schedule=schedule(warmup_steps=6 * STEP))
        trainer.run()
        return stored(trainer.replay).actions

    first, again, other = actions(1), actions(1), actions(2)
    random, chosen = first[:, : 6 * N], first[:, 6 * N :]
    assert torch.equal(first, again)
    assert not torch.equal(random, other[:, : 6 * N])
    assert len(random.unique()) == random.numel()
    assert random.min() < -0.7 < 0.7 < random.max()
    assert random.abs().max() <= 1
    assert (chosen == PushingAgent.action).all()


def test_logs_evaluations_and_checkpoints_come_when_their_multiples_are_reached(make_trainer):
    saved, logger = [], Recorder()
    trainer = make_trainer(
        logger=logger,
        save=lambda state, env_steps: saved.append(env_steps),
        schedule=schedule(total_steps=85, log_every=20, eval_every=30, checkpoint_every=50),
    )
    assert trainer.run()
    assert logger.steps("train/critic_loss") == [24, 40, 64, 80, 88]
    assert logger.steps("eval/") == [32, 64, 88]
    assert saved == [56, 88]
    assert trainer.evaluation.metrics().items() <= logger.records[-1].items()


def test_a_stop_saves_once_and_ends(make_trainer):
    saved = []
    progress = Progress()
    trainer = make_trainer(
        progress=progress,
        stop=lambda: progress.env_steps >= 3 * STEP,
        save=lambda state, env_steps: saved.append((env_steps, state["progress"]["env_steps"])),
    )
    assert not trainer.run()
    assert saved == [(3 * STEP, 3 * STEP)]


def test_a_stop_between_two_questions_is_not_missed(make_trainer):
    """Whichever of the trainer's questions is the first to be answered yes, it saves."""
    for nth in range(2, 6):
        answers = iter([False] * (nth - 1))
        saved = []
        trainer = make_trainer(
            stop=lambda answers=answers: next(answers, True),
            save=lambda state, env_steps, saved=saved: saved.append(env_steps),
        )
        assert not trainer.run()
        assert saved == [trainer.progress.env_steps]


def test_an_interrupted_evaluation_is_made_up_for_once(make_trainer, tmp_path):
    def save(state, env_steps):
        save_checkpoint(tmp_path, state, env_steps=env_steps)

    def resume(**options):
        trainer = make_trainer(save=save, logger=Recorder(), schedule=plan, **options)
        trainer.load_state_dict(load_latest(tmp_path).state)
        return trainer, trainer.run()

    plan = schedule(eval_every=4 * STEP, total_steps=6 * STEP)
    progress = Progress()
    interrupted = make_trainer(
        save=save,
        schedule=plan,
        progress=progress,
        evaluate=lambda agent: None,
        stop=lambda: progress.env_steps >= 4 * STEP,
    )
    assert not interrupted.run()
    assert not interrupted.logger.steps("eval/")

    stopped_at_once, finished = resume(stop=lambda: True)
    assert not finished
    assert stopped_at_once.logger.steps("eval/") == [4 * STEP]
    last, finished = resume()
    assert finished
    assert last.logger.steps("eval/") == [6 * STEP]


def test_an_interrupted_last_evaluation_leaves_the_run_unfinished(make_trainer, tmp_path):
    states = []
    first = make_trainer(
        evaluate=lambda agent: None, save=lambda state, env_steps: states.append(state)
    )
    assert not first.run()
    assert first.progress.env_steps == SCHEDULE.total_steps
    second = make_trainer()
    second.load_state_dict(states[-1])
    assert second.run()
    assert second.logger.steps("eval/") == [SCHEDULE.total_steps]


def test_a_resumed_run_logs_and_learns_as_often_as_one_that_was_not_stopped(make_trainer, tmp_path):
    plan = schedule(total_steps=20 * STEP, log_every=3 * STEP, update_ratio=0.29)
    whole = make_trainer(schedule=plan)
    whole.run()
    progress = Progress()
    first = make_trainer(
        schedule=plan,
        progress=progress,
        stop=lambda: progress.env_steps >= 10 * STEP,
        save=lambda state, env_steps: save_checkpoint(tmp_path, state, env_steps=env_steps),
    )
    first.run()
    second = make_trainer(schedule=plan)
    saved = load_latest(tmp_path).state
    second.load_state_dict(saved)
    assert second.run()
    keys = ("progress/env_steps", "progress/updates")
    records = first.logger.records + second.logger.records
    assert [[record[key] for key in keys] for record in records] == [
        [record[key] for key in keys] for record in whole.logger.records
    ]
    assert second.agent.updates == whole.agent.updates
    assert second.progress.seconds > saved["progress"]["seconds"]


def without_times(records, kind=""):
    return [
        {name: value for name, value in record.items() if not name.startswith("time/")}
        for record in records
        if any(name.startswith(kind) for name in record)
    ]


LEARNING = schedule(
    total_steps=20 * STEP,
    warmup_steps=5 * STEP,
    log_every=4 * STEP,
    eval_every=8 * STEP,
    update_ratio=0.5,
)


def test_the_same_seed_gives_the_same_metrics_and_another_seed_others(make_trainer):
    runs = []
    for seed in (1, 1, 2):
        trainer = make_trainer(seed=seed, agent=make_sac(seed), schedule=LEARNING)
        trainer.run()
        runs.append(without_times(trainer.logger.records))
    assert runs[0] == runs[1]
    assert runs[0][-2]["train/critic_loss/toy-reach"] != runs[2][-2]["train/critic_loss/toy-reach"]
    assert runs[0][-1]["eval/return/toy-reach"] != runs[2][-1]["eval/return/toy-reach"]


def test_evaluations_do_not_touch_what_is_learned(make_trainer):
    runs = []
    for every in (STEP, FAR):
        plan = dataclasses.replace(LEARNING, eval_every=every)
        trainer = make_trainer(agent=make_sac(), schedule=plan)
        trainer.run()
        runs.append(without_times(trainer.logger.records, kind="train/"))
    assert runs[0] == runs[1]


def test_every_promised_metric_is_logged_for_every_task(make_trainer):
    trainer = make_trainer(agent=make_sac(), schedule=LEARNING)
    trainer.run()
    logged = {name for record in trainer.logger.records for name in record}
    per_task = [
        *("eval/success_rate", "eval/return", "train/return", "train/success_rate"),
        *("train/critic_loss", "train/actor_loss", "train/temperature", "train/entropy"),
        *("weights/critic", "weights/actor", "gradients/critic/norm", "gradients/actor/norm"),
    ]
    in_all = [
        "eval/success_rate",
        *("gradients/critic/conflict_rate", "gradients/critic/cosine_min"),
        *("gradients/actor/conflict_rate", "gradients/actor/cosine_min"),
        *("time/env_steps_per_second", "time/updates_per_second"),
    ]
    expected = {f"{name}/{task}" for name in per_task for task in trainer.envs.task_names}
    assert expected | set(in_all) <= logged
    always = {"progress/env_steps", "progress/updates", "time/seconds"}
    assert all(always <= record.keys() for record in trainer.logger.records)
    assert all(type(value) in (int, float) for r in trainer.logger.records for value in r.values())


def test_rates_are_those_of_the_time_spent_training(make_trainer):
    trainer = make_trainer(
        schedule=schedule(log_every=2 * STEP, eval_every=STEP),
        evaluate=lambda agent: time.sleep(0.05),  # returns None, as if interrupted
    )
    trainer.run()
    rates = [record["time/env_steps_per_second"] for record in trainer.logger.records]
    training = sum(2 * STEP / rate for rate in rates)
    assert training + 10 * 0.05 <= trainer.progress.seconds + 1e-6


def test_a_step_that_diverged_reaches_neither_replay_nor_statistics(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves its log file where it runs
    environments = envs.make_vec(
        ("reach-v3", "push-v3"), seed=1, max_episode_steps=12, one_hot=False, num_threads=1
    )
    replay = Replay(2, 500, 39, 4, generator=torch.Generator().manual_seed(1))

    def push_off(progress):
        if progress.env_steps == 2 * 5:
            environments._simulation.data[1].qvel[:] = 1e12

    logger = Recorder()
    trainer = Trainer(
        agent=PushingAgent(),
        envs=environments,
        replay=replay,
        schedule=schedule(total_steps=2 * 40, warmup_steps=2 * 39, log_every=2 * 20),
        logger=logger,
        evaluate=lambda agent: None,
        save=lambda state, env_steps: None,
        stop=lambda: False,
        generator=torch.Generator().manual_seed(1),
        on_step=push_off,
    )
    monkeypatch.setattr(PushingAgent, "action", torch.zeros(4))
    monkeypatch.setattr(PushingAgent, "act", lambda self, o: self.action.expand(*o.shape[:2], 4))
    monkeypatch.setattr(PushingAgent, "update", lambda self, batch: {"loss": torch.zeros(2)})
    trainer.run()
    environments.close()
    state = replay.state_dict()
    assert (state["begun"] - state["forgotten"]).tolist() == [40, 39]
    batch = replay.sample(300)
    assert all(field.isfinite().all() for field in vars(batch).values())
    dropped = [
        {name: value for name, value in record.items() if "dropped" in name}
        for record in logger.records
        if "time/env_steps_per_second" in record
    ]
    assert dropped == [{"train/dropped_episodes/push-v3": 1}] * 2
    assert "push-v3 diverged" in caplog.text


@pytest.mark.parametrize("due", [False, True])
def test_lines_of_metrics_before_and_after_a_point_of_a_run_are_told_apart(due):
    progress = Progress(env_steps=200, evaluation_due=due)
    trained = {"progress/env_steps": 200, "time/env_steps_per_second": 1.0}
    evaluated = {"progress/env_steps": 200, "eval/success_rate": 0.5}
    assert progress.is_later_than({**trained, "progress/env_steps": 192})
    assert progress.is_later_than(trained)
    assert progress.is_later_than(evaluated) is not due
    assert not progress.is_later_than({**trained, "progress/env_steps": 208})
    assert progress.is_later_than({"note": 1})
    assert progress.is_later_than({"progress/env_steps": None})


def test_an_update_of_the_loop_never_asks_the_device_for_a_number(make_trainer):
    """Sampling, learning and the watch for broken numbers: all that a GPU captures as one graph."""
    trainer = make_trainer(agent=make_sac(), schedule=schedule(total_steps=20 * STEP))
    asked = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            asking = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
            if function.overloadpacket in asking:
                asked.append(str(function))
            return function(*args, **(kwargs or {}))

    with portable():
        trainer.run()
        with Watch():
            trainer._update()
            torch.zeros(()).item()
    assert asked == ["aten._local_scalar_dense.default"]  # the one just made
