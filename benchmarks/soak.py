"""Does a training leak? Memory, threads, open files and step time of a real one, over time.

    python benchmarks/soak.py                                  # an hour of MT10
    python benchmarks/soak.py --benchmark toy --minutes 0.3    # what CI does

The replay is small, so that it is full before the measurement begins, and evaluations and
checkpoints are frequent. The first half of the time is left out of the slopes.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mtrl.logging import read_metrics
from mtrl.provenance import library_versions, machine

ROOT = Path(__file__).parents[1]
STOP_SECONDS = 60.0
START_SECONDS = 600.0
LOOKS = 10
"""At open files, of which the fewest count: a checkpoint's are open for as long as it is saved."""
ALLOWED = {"resident_mib": 0.05, "threads": 0.0, "files": 0.0, "step_ms": 0.25}
"""Growth over the measured time, as a share of the mean, that noise explains."""

Samples = dict[str, list[float]]


def options(benchmark: str, directory: Path, steps_between: int) -> list[str]:
    """Spell out a training that does everything often."""
    every = (f"--{what}-every={steps_between}" for what in ("log", "eval", "checkpoint"))
    small = ["--replay-capacity=5000", "--warmup-steps=1000", f"--run-dir={directory / 'run'}"]
    return [
        f"--benchmark={benchmark}",
        "--total-steps=1000000000",
        "--wandb=offline",
        *small,
        *every,
    ]


def sample(pid: int) -> dict[str, float]:
    """Look at a process from outside."""
    process = Path(f"/proc/{pid}")
    lines = (process / "status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return {
        "resident_mib": int(status["VmRSS"].split()[0]) / 1024,
        "threads": int(status["Threads"]),
        "files": min(_files(process) for _ in range(LOOKS)),
    }


def _files(process: Path) -> int:
    time.sleep(0.01)
    return len(list((process / "fd").iterdir()))


def watch(process: subprocess.Popen[bytes], metrics: Path, seconds: float) -> dict[str, Samples]:
    """Collect what a training does for a while: values and their times, by quantity.

    The while begins with its first line of metrics, however long the machine takes to get there.
    """
    begin = time.monotonic()
    while not (metrics.exists() and speeds(metrics)):
        time.sleep(0.1)
        if process.poll() is not None:
            raise SystemExit(f"the training ended by itself, with code {process.returncode}")
        if time.monotonic() - begin > START_SECONDS:
            raise SystemExit(f"the training has logged no speed in {START_SECONDS} s")
    begin = time.monotonic()
    collected: dict[str, Samples] = {name: {"seconds": [], "values": []} for name in ALLOWED}

    def add(name: str, when: float, value: float) -> None:
        collected[name]["seconds"].append(when)
        collected[name]["values"].append(value)

    while time.monotonic() - begin < seconds:
        time.sleep(min(5.0, seconds / 100))
        if process.poll() is not None:
            raise SystemExit(f"the training ended by itself, with code {process.returncode}")
        for name, value in sample(process.pid).items():
            add(name, time.monotonic() - begin, value)
    for when, milliseconds in speeds(metrics):
        add("step_ms", when, milliseconds)
    return collected


def speeds(metrics: Path) -> list[tuple[float, float]]:
    """Return the seconds of each line of training, and how long a step took by then."""
    return [
        (float(row["time/seconds"] or 0), 1000 / rate)
        for row in read_metrics(metrics)
        if (rate := row.get("time/env_steps_per_second"))
    ]


def slope(samples: Samples) -> dict[str, float]:
    """Fit a line to the second half; its growth is between the medians of both its ends."""
    seconds, values = np.array(samples["seconds"]), np.array(samples["values"])
    late = seconds >= seconds.max() / 2
    seconds, values = seconds[late], values[late]
    per_second = float(np.polyfit(seconds, values, 1)[0])
    end = max(1, len(values) // 3)
    growth = float(np.median(values[-end:]) - np.median(values[:end])) / float(values.mean())
    return {"mean": float(values.mean()), "per_hour": per_second * 3600, "growth": growth}


def stop(process: subprocess.Popen[bytes]) -> float:
    """Ask a training to stop; return how long that took."""
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code = process.wait(STOP_SECONDS)
    if code != 128 + signal.SIGTERM:
        raise SystemExit(f"the training ended with code {code}")
    return time.monotonic() - begin


def main() -> int:
    """Soak, print a table, keep it, and exit with 1 if anything grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--benchmark", default="MT10")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps-between", type=int, default=20_000, help="logs, evaluations, ...")
    parser.add_argument(
        "--memory", type=float, default=ALLOWED["resident_mib"], help="share it may grow by"
    )
    parser.add_argument("--output", type=Path, help="where the result is kept, as JSON")
    parser.add_argument("more", nargs="*", help="options for the training, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        command = options(arguments.benchmark, directory, arguments.steps_between)
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    str(ROOT / "scripts" / "train_mt10.py"),
                    *command,
                    *arguments.more,
                ],
                stdout=log,
                stderr=log,
            )
        try:
            metrics = directory / "run" / "metrics.jsonl"
            collected = watch(process, metrics, arguments.minutes * 60)
            stopping = stop(process)
        finally:
            process.kill()
            process.wait()
    slopes = {name: slope(samples) for name, samples in collected.items()}
    allowed = ALLOWED | {"resident_mib": arguments.memory}
    flat = {name: result["growth"] <= allowed[name] for name, result in slopes.items()}
    print(f"{'':14}{'mean':>12}{'per hour':>14}{'growth':>10}")
    for name, result in slopes.items():
        verdict = "flat" if flat[name] else "GROWS"
        numbers = f"{result['mean']:12.2f}{result['per_hour']:+14.3f}{result['growth']:+10.2%}"
        print(f"{name:14}{numbers}  {verdict}")
    print(f"asked to stop, it had saved and ended after {stopping:.1f} s")
    if arguments.output:
        report = {
            "benchmark": arguments.benchmark,
            "minutes": arguments.minutes,
            "slopes": slopes,
            "seconds_to_stop": stopping,
            "versions": library_versions(),
            "machine": machine(),
        }
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    return int(not all(flat.values()))


if __name__ == "__main__":
    sys.exit(main())
