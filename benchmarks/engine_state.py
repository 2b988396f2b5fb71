"""Continue every task from a saved state in a fresh process, and compare with not having stopped.

Each environment plays the scripted policy's actions with noise into the middle of an episode, where
its state is saved. This process goes on; another one restores the state and takes the same steps.
Prints a row a task: how many of the steps differ in any bit of observation, reward or info.

    python benchmarks/engine_state.py --steps 1000
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from metaworld.policies import ENV_POLICY_MAP
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scripted import wanted_actions

import envs

NOISE = 0.3
STATE, ACTIONS, DIGESTS = "state.safetensors", "actions.safetensors", "digests.safetensors"


def make(task_names: list[str]) -> Any:
    """Make one environment of each task; both processes must agree on it."""
    return envs.make_vec(task_names, seed=3, engine="fast")


def noisy_scripted(policies: list[Any], observations: Any, generator: Any) -> NDArray[np.float32]:
    """Draw actions (K, 4): the scripted policies', which reach and grasp, with noise."""
    wanted = wanted_actions(policies, observations)
    noisy: NDArray[np.float64] = wanted + NOISE * generator.normal(size=wanted.shape)
    return np.clip(noisy, -1, 1).astype(np.float32)


def digests_of(result: Any) -> list[bytes]:
    """Hash what each environment's step gave (K,)."""
    observations, rewards, _, truncated, infos = result
    arrays = [observations, rewards, truncated, *(infos[name] for name in sorted(infos))]
    rows = zip(*arrays, strict=True)
    return [hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in row)).digest() for row in rows]


def continue_here(env: Any, actions: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Take the steps (T, K, 4) and hash each (T, K, 32)."""
    hashes = [b"".join(digests_of(env.step(row))) for row in actions]
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(*actions.shape[:2], 32)


def continue_there(task_names: list[str], folder: Path) -> None:
    """Restore a state and take the recorded steps, as a process of its own."""
    env = make(task_names)
    env.set_state(load_file(folder / STATE))
    digests = continue_here(env, load_file(folder / ACTIONS)["actions"])
    save_file({"digests": digests}, folder / DIGESTS)
    env.close()


def differing_steps(
    task_names: list[str], before: int, steps: int, folder: Path
) -> NDArray[np.int64]:
    """Count, for each task (K,), the steps that differ between the two processes."""
    env = make(task_names)
    observations, _ = env.reset()
    policies = [ENV_POLICY_MAP[name]() for name in task_names]
    generator = np.random.default_rng(0)
    for _ in range(before):
        observations = env.step(noisy_scripted(policies, observations, generator))[0]
    save_file(env.get_state(), folder / STATE)
    actions = [noisy_scripted(policies, observations, generator)]
    here = []
    for _ in range(steps):
        result = env.step(actions[-1])
        here.append(b"".join(digests_of(result)))
        actions.append(noisy_scripted(policies, result[0], generator))
    env.close()
    save_file({"actions": np.array(actions[:-1])}, folder / ACTIONS)
    command = [sys.executable, __file__, "--continue-in", str(folder), "--benchmark", *task_names]
    subprocess.run(command, check=True)
    there = load_file(folder / DIGESTS)["digests"]
    mine = np.frombuffer(b"".join(here), np.uint8).reshape(there.shape)
    differing: NDArray[np.int64] = (mine != there).any(axis=2).sum(axis=0)
    return differing


def main(arguments: list[str] | None = None) -> int:
    """Compare all tasks of a benchmark; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--benchmark", nargs="+", default=["MT50"], help="a benchmark or tasks")
    parser.add_argument("--before", type=int, default=120, help="steps before the state is saved")
    parser.add_argument("--steps", type=int, default=1000, help="steps after it")
    parser.add_argument("--continue-in", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = list(envs.task_names(options.benchmark))
    if options.continue_in:
        continue_there(names, options.continue_in)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        differing = differing_steps(names, options.before, options.steps, Path(folder))
    print(f"| {'task':<28} | {'steps':>6} | {'differ':>6} |")
    for name, count in zip(names, differing, strict=True):
        print(f"| {name:<28} | {options.steps:>6} | {count:>6} |")
    equal = not differing.any()
    print(
        "\nall tasks continue bit for bit" if equal else f"\n{(differing > 0).sum()} tasks differ"
    )
    return int(not equal)


if __name__ == "__main__":
    sys.exit(main())
