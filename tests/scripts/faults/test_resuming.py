"""A run goes on elsewhere, later or with other settings, unless these change what it learns."""

import json
import os
import shutil
import subprocess

import pytest

from mtrl.manifest import read_label, write_manifest


def test_what_changes_the_learning_is_refused_and_each_change_named(run, small, finished, snapshot):
    path, _ = finished
    before = snapshot(path)
    unsafe = ["--seed", 7, "--batch-size", 8, "--critic-width", 16, "--log-every", 100]
    result = run("train_mt10", *small, "--run-dir", path, "--resume", *unsafe)
    assert result.code == 2
    (line,) = result.err.splitlines()
    for change in ("`--seed`: 1 -> 7", "`--batch-size`: 4 -> 8", "`--critic-width`: 8 -> 16"):
        assert change in line
    assert "log-every" not in line
    assert {name: snapshot(path)[name] for name in before} == before


@pytest.mark.parametrize("script", ["train_mt10", "evaluate"])
def test_a_number_that_changed_in_the_configuration_is_not_taken_for_the_runs(
    run, finished, snapshot, script
):
    path, _ = finished
    file = path / "config.json"
    text = file.read_text()
    changed = text.replace('"discount": 0.99', '"discount": 0.19')
    assert changed != text
    file.write_text(changed)
    before = snapshot(path)
    options = [path] if script == "evaluate" else ["--run-dir", path, "--resume"]
    result = run(script, *options)
    assert result.code == 2
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert "`--discount` 0.99 -> 0.19" in line
    after = snapshot(path)
    assert {name: after[name] for name in before} == before


def test_a_checkpoint_without_its_circumstances_is_told_of_in_one_line(run, finished):
    path, _ = finished
    newest = max(path.glob("checkpoints/step_*"))
    file = newest / "state.json"
    text = file.read_text()
    assert text.count('"circumstances"') == 1
    file.write_text(text.replace('"circumstances"', '"elsewhere"'))
    write_manifest(newest, ["tensors.safetensors", "state.json"], read_label(newest))
    result = run("train_mt10", "--run-dir", path, "--resume")
    assert result.code == 2
    assert "Traceback" not in result.err
    assert "'circumstances'" in result.err.splitlines()[-1]


@pytest.fixture
def elsewhere():
    """What makes this machine seem another one, with another clock."""
    command = ["unshare", "--uts", "--time", "--monotonic", "100000", "--boottime", "100000"]
    command += ["sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"]).returncode:
        pytest.skip("another host name needs the right to make one up")
    return command


def test_a_run_goes_on_in_another_place_at_another_time_on_another_host(
    run, small, finished, tmp_path, elsewhere, read_metrics, assert_gapless
):
    path, _ = finished
    moved = path.rename(tmp_path / "moved")
    for file in moved.rglob("*"):
        os.utime(file, (2**32, 2**32))  # in the year 2106
    safe = ["--total-steps", 480, "--threads", 2, "--eval-every", 480, "--wandb", "disabled"]
    result = run("train_mt10", *small, "--run-dir", moved, "--resume", *safe, before=elsewhere)
    assert result.code == 0, result.err
    for change in ("`--total-steps`: 400 -> 480", "`--threads`: 1 -> 2"):
        assert f"resumed with a changed setting: {change}" in result.err
    assert_gapless(read_metrics(moved))
    record = json.loads((moved / "config.json").read_text())
    assert record["config"]["total_steps"] == 480
    assert record["history"][0]["config"]["total_steps"] == 400


def test_a_second_process_is_told_who_is_writing(start, run, endless, reached):
    script = start("train_mt10", *endless)
    script.wait_until(reached)
    result = run("train_mt10", *endless, "--resume")
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert f"in use by pid {script.pid} on {os.uname().nodename} since 2" in line
    step = reached()
    script.wait_until(lambda: reached() > step)
