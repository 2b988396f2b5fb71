"""Measure what the engine costs besides stepping: creation, resets, memory; and how it scales.

Each number comes from a process of its own. Creation is measured after a first one has filled the
cache; the time to import is told apart.

    python benchmarks/engine_costs.py
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

import envs
from mtrl.cores import available_cores

SECONDS = 4.0


def create(benchmark: str, envs_per_task: int, engine: str) -> None:
    """Create environments, reset and step them, and print what it took."""
    begun = time.perf_counter()
    vector = envs.make_vec(
        benchmark, seed=0, envs_per_task=envs_per_task, engine=engine, one_hot=False
    )
    created = time.perf_counter() - begun
    vector.reset()
    resets = []
    for _ in range(20):
        begun = time.perf_counter()
        vector.reset(options={"goal_indices": np.zeros(vector.num_envs, int)})
        resets.append((time.perf_counter() - begun) / vector.num_envs)
    actions = np.random.default_rng(0).uniform(-1, 1, vector.action_space.shape)
    for _ in range(20):
        vector.step(actions)
    begun = time.perf_counter()
    vector.close()
    closed = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"| {benchmark:<9} | {vector.num_envs:>5} | {engine:<8} | {created:>7.2f} s |"
        f" {1e6 * statistics.median(resets[1:]):>8.1f} us | {peak:>6.0f} MB | {closed:>6.3f} s |",
        flush=True,
    )


def scale(benchmark: str, envs_per_task: int, threads: int) -> None:
    """Print environment steps a second on a number of threads."""
    vector = envs.make_vec(
        benchmark, seed=0, envs_per_task=envs_per_task, num_threads=threads, one_hot=False
    )
    vector.reset()
    generator = np.random.default_rng(0)
    rates, begun = [], time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        actions = generator.uniform(-1, 1, vector.action_space.shape).astype(np.float32)
        started = time.perf_counter()
        vector.step(actions)
        rates.append(vector.num_envs / (time.perf_counter() - started))
    rate = statistics.median(rates)
    print(f"| {benchmark:<9} | {vector.num_envs:>5} | {threads:>7} | {rate:>8.0f} |", flush=True)
    vector.close()


def alone(*arguments: str) -> None:
    """Run one row of a table in a process of its own."""
    subprocess.run([sys.executable, __file__, *arguments], check=True)


def main(arguments: list[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument(
        "--threads", type=int, nargs="+", help="how many; default: 1, 2, 4, ... to the cores"
    )
    options = parser.parse_args(arguments)
    if options.row:
        kind, benchmark, envs_per_task, last = options.row
        if kind == "warm-up":
            envs.make_vec(benchmark, seed=0).close()
        elif kind == "create":
            create(benchmark, int(envs_per_task), last)
        else:
            scale(benchmark, int(envs_per_task), int(last))
        return 0

    # Nothing large in this process: the peak memory of a child begins at its parent's.
    for benchmark in ("MT10", "MT50"):
        alone("--row", "warm-up", benchmark, "1", "fast")
    print("| benchmark | envs  | engine   |   created |   a reset   |  peak     |  closed  |")
    for created in (("MT10", "1"), ("MT50", "1"), ("MT50", "4"), ("MT50", "20")):
        alone("--row", "create", *created, "fast")
    alone("--row", "create", "MT50", "1", "official")
    cores = available_cores()
    threads = options.threads or [2**n for n in range(cores.bit_length()) if 2**n <= cores]
    print("\n| benchmark | envs  | threads | steps/s  |")
    for scaled in (("MT10", "1"), ("MT10", "20"), ("MT10", "100"), ("MT50", "4")):
        for count in threads:
            alone("--row", "scale", *scaled, str(count))
    return 0


if __name__ == "__main__":
    sys.exit(main())
