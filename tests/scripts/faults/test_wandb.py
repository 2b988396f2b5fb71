"""What a training does whose wandb goes wrong; the rest is in tests/mtrl/test_wandb_logger.py."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

NO_SERVER = {"WANDB_BASE_URL": "http://127.0.0.1:9"}


def warnings(result):
    return [line for line in result.err.splitlines() if line.startswith("WARNING: ")]


def steps_kept(path):
    """Return the steps whose metrics wandb's newest file in a run keeps for uploading."""
    newest = max(path.glob("wandb/*run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    # Field 16 of a history record is the value, as JSON, after its length in one byte.
    values = re.findall(rb"progress/env_steps\x82\x01.([\d.]+)", newest.read_bytes(), re.DOTALL)
    return [int(float(value)) for value in values]


@pytest.fixture
def stop(read_metrics):
    """Stop a training after a few more lines; check that it ends as it should."""

    def stop(script, path):
        def lines():
            return len(read_metrics(path))

        enough = lines() + 3
        script.wait_until(lambda: lines() >= enough)
        script.signal(signal.SIGTERM)
        began = time.monotonic()
        result = script.wait()
        assert result.code == 143
        assert "Traceback" not in result.err
        assert time.monotonic() - began < 30
        return result

    return stop


@pytest.mark.parametrize(
    ("mode", "account", "reason"),
    [("auto", {"WANDB_API_KEY": "0" * 40}, ""), ("online", {}, "API key")],
    ids=["no network", "no key"],
)
def test_without_network_or_key_a_training_goes_on_and_can_be_uploaded_later(
    start, endless, stop, tmp_path, read_metrics, assert_gapless, mode, account, reason
):
    path = tmp_path / "run"
    environment = {**NO_SERVER, **account}
    script = start("train_mt10", *endless, "--wandb", mode, environment=environment)
    script.wait_until(lambda: script.said("WARNING") and list(path.glob("wandb/*/*.wandb")))
    result = stop(script, path)
    (warning,) = warnings(result)
    assert warning.startswith("WARNING: wandb goes on offline: ")
    assert reason in warning
    assert f"upload to wandb with: wandb sync {path}/wandb/*run-*" in result.err
    metrics = read_metrics(path)
    assert_gapless(metrics)
    assert steps_kept(path)[-1] == metrics[-1]["progress/env_steps"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("victim", ["helper", "service"])
def test_its_processes_killed_in_the_middle_a_training_goes_on(
    start, run, endless, stop, tmp_path, reached, checkpoints, read_metrics, assert_gapless, victim
):
    path = tmp_path / "run"
    options = [*endless, "--wandb", "offline"]
    script = start("train_mt10", *options)
    script.wait_until(lambda: list(path.glob("wandb/*/*.wandb")) and reached())
    (helper,) = children(script.pid)
    (service,) = children(helper)
    os.kill({"helper": helper, "service": service}[victim], signal.SIGKILL)
    script.wait_until(lambda: script.said("wandb stopped"))
    result = stop(script, path)
    (warning,) = warnings(result)
    assert "metrics.jsonl has everything" in warning
    assert "upload to wandb with: wandb sync" in result.err
    total = ["--resume", "--total-steps", (checkpoints(path)[-1] // 80 + 2) * 80]
    assert run("train_mt10", *options, *total).code == 0
    assert_gapless(read_metrics(path))


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def small_disk(finished):
    """A finished run whose directory for wandb is a file system of 64 kilobytes."""
    path, _ = finished
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path / "wandb"]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system to fill needs the right to mount one")
    yield path
    subprocess.run(["umount", "--lazy", path / "wandb"], check=True)


def test_its_disk_full_a_training_goes_on(start, run, small, small_disk, stop, read_metrics):
    options = [*small, "--log-every", 8, "--eval-every", 10**9, "--checkpoint-every", 10**9]
    options += ["--wandb", "offline", "--run-dir", small_disk, "--resume"]
    script = start("train_mt10", *options, "--total-steps", 10**9)
    script.wait_until(lambda: os.statvfs(small_disk / "wandb").f_bavail == 0)
    stop(script, small_disk)
    reached = read_metrics(small_disk)[-1]["progress/env_steps"]
    assert run("train_mt10", *options, "--total-steps", reached + 80).code == 0  # still full
    rows = read_metrics(small_disk)
    steps = [line["progress/env_steps"] for line in rows if "time/env_steps_per_second" in line]
    assert steps == [*range(80, 401, 80), *range(408, reached + 81, 8)]
