"""A run goes on elsewhere, later or with other settings, unless these change what it learns."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mtrl.checkpoint import load_latest, save_checkpoint
from mtrl.cores import available_cores
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
@pytest.mark.parametrize("name", ["id", "total_steps"])
def test_a_character_that_changed_in_the_configuration_is_found(
    run, finished, snapshot, name, script
):
    path, _ = finished
    file = path / "config.json"
    flip_a_bit(file, file.read_bytes().index(f'"{name}": '.encode()) + len(name) + 5)
    assert json.loads(file.read_text()), "what is found is no JSON that cannot be parsed"
    before = snapshot(path)
    options = [path] if script == "evaluate" else ["--run-dir", path, "--resume"]
    result = run(script, *options)
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert "config.json was changed or is damaged" in line
    assert snapshot(path) == before


@pytest.mark.parametrize("script", ["train_mt10", "evaluate"])
def test_a_configuration_changed_as_a_whole_is_compared_with_the_checkpoint(
    run, finished, snapshot, edit_config, script
):
    path, _ = finished
    edit_config(path, lambda config: config["agent"].update(discount=0.19))
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


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints"])
def test_a_link_out_of_the_run_directory_is_refused_and_what_it_leads_to_kept(
    run, finished, tmp_path, snapshot, name
):
    path, _ = finished
    outside = (path / name).rename(tmp_path / "outside")
    (path / name).symlink_to(outside)
    if outside.is_dir():
        (outside / ".incomplete_mine").mkdir()
        (outside / ".incomplete_mine" / "precious").touch()
    before = snapshot(tmp_path)
    result = run("train_mt10", "--run-dir", path, "--resume", "--total-steps", 480)
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert f"{path / name} is a symbolic link" in line
    assert snapshot(tmp_path) == before


def test_another_interval_does_not_hide_that_checkpoints_are_missing(run, finished):
    path, _ = finished
    shutil.rmtree(path / "checkpoints")
    (path / "summary.json").unlink()
    metrics = (path / "metrics.jsonl").read_bytes()
    for _ in range(2):  # the second time, that interval is the stored one
        result = run("train_mt10", "--run-dir", path, "--resume", "--checkpoint-every", 10**6)
        assert result.code == 2
        assert "has no checkpoint, though the run came to 400 steps" in result.err.splitlines()[-1]
    assert (path / "metrics.jsonl").read_bytes() == metrics


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


ON_ONE_CORE = (
    *(sys.executable, "-c"),
    "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    "os.execv(sys.argv[1], sys.argv[1:])",
)
NOT_THE_SAME = "not bit for bit as it would have been without the stop: "


@pytest.mark.skipif(available_cores() < 2, reason="there are no fewer cores than this one")
@pytest.mark.parametrize("threads", [0, 2])
def test_a_run_goes_on_with_fewer_cores_and_says_what_has_changed(
    run, small, tmp_path, read_metrics, assert_gapless, threads
):
    path = tmp_path / "run"
    options = [*small, "--no-overlap", "--threads", threads, "--wandb", "disabled"]
    options += ["--run-dir", path]
    assert run("train_mt10", *options, "--total-steps", 240).code == 0
    more = ["--resume", "--total-steps", 480]
    result = run("train_mt10", *options, *more, before=ON_ONE_CORE)
    assert result.code == 0, result.err
    # Two threads on one core take longer, and add up in the same order.
    fewer = f"WARNING: {NOT_THE_SAME}learner threads {available_cores()} -> 1\n"
    assert (fewer in result.err) == (NOT_THE_SAME in result.err) == (threads == 0)
    assert_gapless(read_metrics(path))
    assert read_metrics(path)[-1]["progress/env_steps"] == 480


@pytest.fixture
def edit_newest(finished):
    """Replace the checkpoints of the finished run by the newest, changed."""

    def edit_newest(change):
        directory = finished[0] / "checkpoints"
        found = load_latest(directory)
        change(found.state)
        label = found.label
        for checkpoint in directory.iterdir():
            shutil.rmtree(checkpoint)
        save_checkpoint(directory, found.state, env_steps=label.env_steps, run=label.run)

    return edit_newest


def test_other_arithmetic_of_the_same_processor_is_told_of(run, small, finished, edit_newest):
    path, _ = finished
    edit_newest(lambda state: state["circumstances"].update(precision="bfloat16"))
    options = ["--run-dir", path, "--resume", "--total-steps", 480, "--wandb", "disabled"]
    result = run("train_mt10", *small, *options, environment={"ATEN_CPU_CAPABILITY": "default"})
    assert result.code == 0, result.err
    capability = torch.backends.cpu.get_cpu_capability()
    instructions = f"instructions {capability} -> DEFAULT"
    assert f"WARNING: {NOT_THE_SAME}{instructions}, precision bfloat16 -> float32\n" in result.err


@pytest.mark.parametrize("again", [False, True], ids=["resumed", "and resumed again"])
def test_a_run_from_before_an_option_was_added_goes_on(
    run, finished, edit_config, edit_newest, read_metrics, assert_gapless, again
):
    def forget(options):
        del options["preset"]
        if "compile" in options:  # which is no setting of a checkpoint
            options["compile"] = False
        for name in ("n_steps", "normalize_rewards", "task_embedding", "reset_every"):
            del options["agent"][name]

    path, _ = finished
    edit_newest(lambda state: forget(state["settings"]))
    if not again:  # what the first resume stored is complete, while the checkpoint may be the same
        edit_config(path, forget)
    result = run("train_mt10", "--run-dir", path, "--resume", "--total-steps", 480)
    assert result.code == 0, result.err
    assert "`--compile`" not in result.err
    assert_gapless(read_metrics(path))
    stored = json.loads((path / "config.json").read_text())["config"]
    assert (stored["preset"], stored["compile"]) == ("default", "off")


@pytest.fixture
def from_a_gpu(finished, edit_config, edit_newest):
    """A finished run, changed into what one leaves behind that learned on a GPU."""
    path, _ = finished
    edit_config(path, lambda config: config.update(device="cuda"))

    def change(state):
        state["circumstances"]["device"] = "NVIDIA H200"
        assert replace_generators(state["agent"]) + replace_generators(state["replay"]) == 4

    edit_newest(change)
    return path


def replace_generators(state):
    """Put states as long as a GPU's where there are generators' of the CPU; return how many."""
    count = 0
    for name, value in state.items():
        if isinstance(value, dict):
            count += replace_generators(value)
        elif isinstance(value, torch.Tensor) and value.shape == torch.get_rng_state().shape:
            state[name] = torch.arange(16, dtype=torch.uint8)
            count += 1
    return count


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_run_goes_on_without_its_gpu_and_says_so(run, from_a_gpu, read_metrics, assert_gapless):
    options = ["--run-dir", from_a_gpu, "--resume", "--total-steps", 480, "--wandb", "disabled"]
    refused = run("train_mt10", *options)
    assert refused.code == 2
    assert "`--device` is cuda, but torch sees no GPU: use --device cpu" in refused.err
    result = run("train_mt10", *options, "--device", "cpu")
    assert result.code == 0, result.err
    assert 'resumed with a changed setting: `--device`: "cuda" -> "cpu"' in result.err
    assert f"WARNING: {NOT_THE_SAME}device NVIDIA H200 -> cpu\n" in result.err
    assert_gapless(read_metrics(from_a_gpu))
    assert read_metrics(from_a_gpu)[-1]["progress/env_steps"] == 480


def test_a_clock_that_jumps_during_a_run_changes_nothing(
    run, small, tmp_path, read_metrics, assert_gapless
):
    path, jumping = tmp_path / "run", Path(__file__).with_name("jumping.py")
    options = [*small, "--wandb", "disabled", "--run-dir", path]
    began = time.monotonic()
    for more in (["--total-steps", 400], ["--total-steps", 800, "--resume"]):
        result = run(jumping, *options, *more)
        assert result.code == 0, result.err
        assert re.search(r"elapsed 0:0\d:\d\d  ETA 0:00:00", result.err)
    metrics = read_metrics(path)
    assert_gapless(metrics)
    seconds = [line["time/seconds"] for line in metrics]
    assert seconds == sorted(seconds)
    assert 0 < seconds[-1] < time.monotonic() - began
    rates = [line.get("time/env_steps_per_second", 1) for line in metrics]
    assert all(1e-2 < rate < 1e6 for rate in rates)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_one_flipped_bit_costs_one_checkpoint(
    run, small, finished, read_metrics, assert_gapless, name
):
    path, _ = finished
    newest = max(path.glob("checkpoints/step_*"))
    flip_a_bit(newest / name)
    options = ["--run-dir", path, "--resume", "--total-steps", 480, "--wandb", "disabled"]
    result = run("train_mt10", *small, *options)
    assert result.code == 0, result.err
    skipped = rf"skipped a checkpoint: .*{newest.name}/{name}.*; using step_0+320"
    assert re.search(skipped, result.err)
    assert_gapless(read_metrics(path))


def flip_a_bit(file, place=None):
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    file.write_bytes(content)


def test_metrics_that_were_changed_are_told_of_and_no_line_is_lost_or_doubled(
    run, small, finished, read_metrics
):
    path, _ = finished
    file = path / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    later = json.dumps({"progress/env_steps": 480, "time/env_steps_per_second": 1.0}) + "\n"
    file.write_bytes(b"".join(lines[:1] + lines[2:]) + later.encode())
    kept = read_metrics(path)[:-1]
    flip_a_bit(file, file.read_bytes().index(b'"time/seconds": ') + 16)  # another first digit
    options = ["--run-dir", path, "--resume", "--total-steps", 480, "--wandb", "disabled"]
    result = run("train_mt10", *small, *options)
    assert result.code == 0, result.err
    assert "metrics.jsonl` is not what it was when the checkpoint was saved" in result.err
    metrics = read_metrics(path)
    assert metrics[1 : len(kept)] == kept[1:]
    assert [line["progress/env_steps"] for line in metrics[len(kept) :]] == [480, 480]
    assert "time/updates_per_second" in metrics[len(kept)]
