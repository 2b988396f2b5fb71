"""Measure environment steps a second: official sync and async, the engine, and physics alone.

All contestants play the same goals with the same actions, one after the other in short turns, and
the medians over the turns are printed: a busy machine then slows all of them alike.

    python benchmarks/engine_speed.py --benchmark MT10 --envs-per-task 1 --actions random scripted
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from metaworld.policies import ENV_POLICY_MAP
from numpy.typing import NDArray

import envs
from envs.engine.compiler import kernel
from envs.engine.native import doubles, mj_step
from envs.engine.workers import Workers

EPISODE = 500
Step = Callable[[NDArray[np.float32]], Any]


def official_env(task_name: str) -> gym.Env[Any, Any]:
    """Make one official environment with its usual wrapper, goal 0 of the benchmark's seed."""
    single = envs.make_vec(task_name, seed=0, engine="official", one_hot=False)
    env = single._envs[0]  # type: ignore[attr-defined]
    env._last_rand_vec = single._goals[0][0].copy()  # type: ignore[attr-defined]
    return gym.wrappers.TimeLimit(env, EPISODE)


def record_actions(task_names: tuple[str, ...], kind: str, steps: int) -> NDArray[np.float32]:
    """Draw random actions (T, K, 4), or record what the scripted policies do, with noise."""
    generator = np.random.default_rng(0)
    if kind == "random":
        return generator.uniform(-1, 1, (steps, len(task_names), 4)).astype(np.float32)
    engine = envs.make_vec(task_names, seed=0, one_hot=False)
    policies = [ENV_POLICY_MAP[name]() for name in task_names]
    observations, _ = engine.reset(options={"goal_indices": np.zeros(len(policies), int)})
    recorded = []
    for _ in range(steps):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # policies warn of their own large constants
            wanted = [
                policy.get_action(row) for policy, row in zip(policies, observations, strict=True)
            ]
        noisy = np.array(wanted) + 0.1 * generator.normal(size=(len(policies), 4))
        recorded.append(np.clip(noisy, -1, 1).astype(np.float32))
        observations, *_ = engine.step(recorded[-1])
    engine.close()
    return np.array(recorded)


@kernel
def _physics_rows(
    first: int, end: int, models: Any, datas: Any, controls: Any, actions: Any
) -> None:
    """Five MuJoCo steps for each row and nothing else."""
    for row in range(first, end):
        doubles(controls[row], 1)[0] = actions[row, 3]
        for _ in range(5):
            mj_step(models[row], datas[row])


def physics_alone(engine: Any, num_threads: int) -> tuple[Step, Callable[[], None]]:
    """Step the engine's own simulations without observations, rewards or the hand's motion."""
    simulation, workers = engine._simulation, Workers(num_threads)
    models = np.array([model._address for model in simulation._models])
    datas = np.array([data._address for data in simulation.data])
    controls = np.array([data.ctrl.ctypes.data for data in simulation.data])

    def step(actions: NDArray[np.float32]) -> None:
        workers.start(
            functools.partial(_physics_rows, first, end, models, datas, controls, actions)
            for first, end in simulation._chunks
        )
        workers.wait(60.0)

    return step, workers.close


@contextlib.contextmanager
def contestants(
    task_names: tuple[str, ...], envs_per_task: int, threads: list[int], officials: list[str]
) -> Iterator[dict[str, tuple[Step, Callable[[], Any]]]]:
    """Make all contestants: name -> (step, reset)."""
    makers = [
        functools.partial(official_env, name) for name in task_names for _ in range(envs_per_task)
    ]
    made: dict[str, tuple[Step, Callable[[], Any]]] = {}
    closers: list[Callable[[], None]] = []
    goals = {"goal_indices": np.zeros(len(makers), int)}
    for kind in officials:
        vector = {"sync": gym.vector.SyncVectorEnv, "async": gym.vector.AsyncVectorEnv}[kind]
        official = vector(makers)
        made[f"official {kind}"] = (official.step, official.reset)
        closers.append(official.close)
    for count in threads:
        engine = envs.make_vec(
            task_names, seed=0, envs_per_task=envs_per_task, num_threads=count, one_hot=False
        )
        reset = functools.partial(engine.reset, options=goals)
        made[f"engine, {count} threads"] = (engine.step, reset)
        physics, close = physics_alone(engine, count)
        made[f"physics alone, {count} threads"] = (physics, reset)
        closers += [close, engine.close]
    try:
        yield made
    finally:
        for close in closers:
            close()


def measure(
    made: dict[str, tuple[Step, Callable[[], Any]]],
    actions: NDArray[np.float32],
    turns: int,
) -> dict[str, float]:
    """Play the recorded actions in `turns` turns: median environment steps a second."""
    rates: dict[str, list[float]] = {name: [] for name in made}
    for _, reset in made.values():
        reset()
    for turn in np.array_split(actions, turns):
        for name, (step, _) in made.items():
            begun = time.perf_counter()
            for row in turn:
                step(row)
            rates[name].append(turn.shape[0] * turn.shape[1] / (time.perf_counter() - begun))
    return {name: statistics.median(values) for name, values in rates.items()}


def main(arguments: list[str] | None = None) -> int:
    """Print a row for each contestant and kind of actions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--benchmark", nargs="+", default=["MT10"], help="a benchmark or tasks")
    parser.add_argument("--envs-per-task", type=int, default=1)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--official", nargs="*", default=["sync", "async"])
    parser.add_argument("--actions", nargs="+", default=["random", "scripted"])
    parser.add_argument("--steps", type=int, default=EPISODE - 1, help="vector steps in all")
    parser.add_argument("--turns", type=int, default=10)
    options = parser.parse_args(arguments)

    names = envs.task_names(options.benchmark)
    recorded = {kind: record_actions(names, kind, options.steps) for kind in options.actions}
    total = len(names) * options.envs_per_task
    print(f"{total} environments of {len(names)} tasks; environment steps a second (median)")
    with contestants(names, options.envs_per_task, options.threads, options.official) as made:
        table = {
            kind: measure(made, np.repeat(actions, options.envs_per_task, axis=1), options.turns)
            for kind, actions in recorded.items()
        }
    print(f"| {'':<26} |" + "".join(f" {kind:>9} | of best official |" for kind in table))
    for name in made:
        cells = ""
        for rates in table.values():
            best = max([rates[key] for key in rates if key.startswith("official")], default=None)
            ratio = "-" if best is None else f"{rates[name] / best:.1f}x"
            cells += f" {rates[name]:>9.0f} | {ratio:>16} |"
        print(f"| {name:<26} |{cells}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process: {peak:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
