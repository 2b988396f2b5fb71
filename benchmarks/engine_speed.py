"""Measure environment steps a second: official sync and async, EnvPool, the engine, and physics.

All contestants play the same actions, one after the other in short turns, and the medians over the
turns are printed: a busy machine then slows all of them alike. The official environments and the
engine play the same goals. EnvPool knows one task at a time, so a benchmark is one pool a task,
with one thread each: called in turn for one thread, all started before any is waited for for more.

    python benchmarks/engine_speed.py                                  # everything, ten minutes
    python benchmarks/engine_speed.py --benchmark MT10 --envs-per-task 1 --actions random
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from metaworld.policies import ENV_POLICY_MAP
from numpy.typing import NDArray
from scripted import wanted_actions

import envs
from envs.engine.compiler import kernel
from envs.engine.kernels import set_action
from envs.engine.native import fetch_add, ints, mj_step
from mtrl.files import write_json_atomic
from mtrl.provenance import library_versions, machine

EPISODE = 500
MAX_PROCESSES = 50  # of the official async environments: each takes some 160 MB
OTHERS = ["sync", "async", "envpool"]
RESULTS = Path(__file__).parent / "results" / "engine_speed.json"
# Benchmark, environments per task, vector steps: enough of them for things to be grasped.
SIZES = [
    (["MT10"], 1, 499),
    (["MT10"], 5, 200),
    (["MT10"], 20, 120),
    (["MT50"], 1, 200),
    (["MT50"], 4, 120),
]
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
        wanted = wanted_actions(policies, observations)
        noisy = wanted + 0.1 * generator.normal(size=(len(policies), 4))
        recorded.append(np.clip(noisy, -1, 1).astype(np.float32))
        observations, *_ = engine.step(recorded[-1])
    engine.close()
    return np.array(recorded)


@kernel
def _physics_chunks(chunks: Any, next_chunk: int, rigs: Any, actions: Any) -> None:
    """Move the hand's target and take five MuJoCo steps for each row, and nothing else."""
    chunk = fetch_add(next_chunk, 1)
    while chunk < len(chunks):
        for row in range(chunks[chunk, 0], chunks[chunk, 1]):
            rig = rigs[row]
            bvh_count = ints(rig.bvh_count, 1)
            num_bvh, bvh_count[0] = bvh_count[0], 0  # as the engine does, lest it wins by that
            set_action(rig, actions[row])
            for _ in range(rig.frame_skip):
                mj_step(rig.mjmodel, rig.mjdata)
            bvh_count[0] = num_bvh
        chunk = fetch_add(next_chunk, 1)


def physics_alone(
    task_names: tuple[str, ...], envs_per_task: int, num_threads: int
) -> tuple[Step, Callable[[], Any], Callable[[], None]]:
    """Make simulations that are stepped without observations and rewards: step, reset, close."""
    engine: Any = envs.make_vec(
        task_names, seed=0, envs_per_task=envs_per_task, num_threads=num_threads, one_hot=False
    )
    simulation, workers = engine._simulation, engine._workers

    def step(actions: NDArray[np.float32]) -> None:
        next_chunk = np.zeros(1, np.int64)
        job = functools.partial(
            _physics_chunks,
            simulation._chunks,
            next_chunk.ctypes.data,
            simulation._rig_records,
            actions,
        )
        workers.start(job, num_threads - 1)
        job()
        workers.wait(60.0)

    def reset() -> None:
        engine.reset(options={"goal_indices": np.zeros(engine.num_envs, int)})
        for row in range(engine.num_envs):
            simulation.model_of(row)  # enters the goal's positions

    return step, reset, engine.close


def envpool_of(
    task_names: tuple[str, ...], envs_per_task: int, *, at_once: bool
) -> tuple[Step, Callable[[], Any], Callable[[], None]]:
    """Make one EnvPool a task: step, reset, close."""
    import envpool

    pools = [
        envpool.make(
            f"MetaWorld/{name.removesuffix('-v3').title().replace('-', '')}-v3",
            "gymnasium",
            num_envs=envs_per_task,
            num_threads=1,
        )
        for name in task_names
    ]

    def step_in_turn(actions: NDArray[np.float32]) -> None:
        for pool, own in zip(pools, np.split(actions, len(pools)), strict=True):
            pool.step(own)

    def step_at_once(actions: NDArray[np.float32]) -> None:
        for pool, own in zip(pools, np.split(actions, len(pools)), strict=True):
            pool.send(own)
        for pool in pools:
            pool.recv()

    def reset() -> None:
        for pool in pools:
            pool.reset()

    def close() -> None:
        for pool in pools:
            pool.close()

    return (step_at_once if at_once else step_in_turn), reset, close


@contextlib.contextmanager
def contestants(
    task_names: tuple[str, ...], envs_per_task: int, threads: list[int], others: list[str]
) -> Iterator[dict[str, tuple[Step, Callable[[], Any]]]]:
    """Make all contestants: name -> (step, reset)."""
    makers = [
        functools.partial(official_env, name) for name in task_names for _ in range(envs_per_task)
    ]
    made: dict[str, tuple[Step, Callable[[], Any]]] = {}
    goals = {"goal_indices": np.zeros(len(makers), int)}
    with contextlib.ExitStack() as stack:
        for kind in ("sync", "async"):
            if kind in others and (kind == "sync" or len(makers) <= MAX_PROCESSES):
                vector = {"sync": gym.vector.SyncVectorEnv, "async": gym.vector.AsyncVectorEnv}
                official = vector[kind](makers)
                made[f"official {kind}"] = (official.step, official.reset)
                stack.callback(official.close)
        for count in threads:
            if "envpool" in others:
                step, reset, close = envpool_of(task_names, envs_per_task, at_once=count > 1)
                made[f"EnvPool, {count} threads"] = (step, reset)
                stack.callback(close)
            engine = envs.make_vec(
                task_names, seed=0, envs_per_task=envs_per_task, num_threads=count, one_hot=False
            )
            stack.callback(engine.close)
            start = functools.partial(engine.reset, options=goals)
            physics, restart, close = physics_alone(task_names, envs_per_task, count)
            stack.callback(close)
            made[f"physics alone, {count} threads"] = (physics, restart)
            made[f"engine, {count} threads"] = (engine.step, start)
        yield made


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


def race(
    benchmark: list[str], envs_per_task: int, steps: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure one benchmark at one size and print a row for each contestant."""
    names = envs.task_names(benchmark)
    total = len(names) * envs_per_task
    recorded = {kind: record_actions(names, kind, steps) for kind in options.actions}
    with contestants(names, envs_per_task, options.threads, options.others) as made:
        rates = {
            kind: measure(made, np.repeat(actions, envs_per_task, axis=1), options.turns)
            for kind, actions in recorded.items()
        }
    print(f"\n{total} environments of {len(names)} tasks; steps a second (median of turns)\n")
    header = "".join(f" {kind:>9} | / official | / EnvPool | / physics |" for kind in rates)
    print(f"| {'':<24} |{header}")
    for name in made:
        _, _, threads = name.partition(",")
        cells = ""
        for by_name in rates.values():
            official = [rate for key, rate in by_name.items() if key.startswith("official")]
            bars = (
                max(official, default=None),
                by_name.get(f"EnvPool,{threads}"),
                by_name.get(f"physics alone,{threads}"),
            )
            ratios = ["-" if bar is None else f"{by_name[name] / bar:.2f}" for bar in bars]
            cells += f" {by_name[name]:>9.0f} |" + "".join(
                f" {ratio:>{width}} |" for ratio, width in zip(ratios, (10, 9, 9), strict=True)
            )
        print(f"| {name:<24} |{cells}", flush=True)
    return {"benchmark": benchmark, "environments": total, "steps": steps, "rates": rates}


def main(arguments: list[str] | None = None) -> int:
    """Print a table for each benchmark and size, and keep all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--benchmark", nargs="+", help="a benchmark or tasks; default: all sizes")
    parser.add_argument("--envs-per-task", type=int, default=1)
    parser.add_argument("--steps", type=int, default=EPISODE - 1, help="vector steps in all")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--others", nargs="*", choices=OTHERS, default=OTHERS, help="whom to compare with"
    )
    parser.add_argument("--actions", nargs="+", default=["random", "scripted"])
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--keep", type=Path, default=RESULTS, help="where the table goes")
    options = parser.parse_args(arguments)
    if "envpool" in options.others and importlib.util.find_spec("envpool") is None:
        print('EnvPool is missing: pip install -c constraints.txt -e ".[peers]"')
        options.others = [name for name in options.others if name != "envpool"]

    sizes = SIZES
    if options.benchmark:
        sizes = [(options.benchmark, options.envs_per_task, options.steps)]
    # A process each: the memory that one size leaves behind would slow down or stop the next.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as one:
        tables = [one.submit(race, *size, options).result() for size in sizes]
    kept = {"machine": machine(), "versions": library_versions(), "tables": tables}
    write_json_atomic(options.keep, kept)
    print(f"kept in {options.keep}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
