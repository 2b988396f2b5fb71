"""Disks fill, directories vanish or become read-only, while a training writes to them."""

import contextlib
import os
import shutil
import signal

import pytest


def fill(disk, *, leave=0):
    """Take all space but `leave` bytes; return the file that takes it."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
        file.write(bytes(free.f_bavail * free.f_frsize + 4096))
    assert os.statvfs(disk).f_bavail == 0
    os.truncate(filler, filler.stat().st_size - leave)
    return filler


def test_a_full_disk_costs_neither_the_training_nor_a_line(
    start, run, endless, disk, reached, checkpoints, read_metrics, assert_gapless
):
    path = disk / "run"
    options = [*endless, "--run-dir", path, "--wandb", "offline"]
    script = start("train_mt10", *options)
    script.wait_until(lambda: len(checkpoints(path)) == 2)
    filler = fill(disk, leave=16_384)  # room for lines, not for a checkpoint
    script.wait_until(lambda: script.said("cannot be written"))
    before = checkpoints(path)
    step = reached(path)
    script.wait_until(lambda: reached(path) >= step + 160 or script.said("wait in memory"))
    assert checkpoints(path) == before, "the old ones are kept"
    fill(disk)
    script.wait_until(lambda: script.said("the lines wait in memory"))
    step = reached(path)
    filler.unlink()
    script.wait_until(lambda: script.said("can be written again") and script.said("saved again"))
    script.wait_until(lambda: reached(path) >= step + 400 and checkpoints(path)[-1] > before[-1])
    script.signal(signal.SIGTERM)
    result = script.wait()
    assert result.code == 143
    assert "Traceback" not in result.err
    assert_gapless(read_metrics(path))
    saved = checkpoints(path)[-1]
    assert saved >= reached(path)
    more = ["--resume", "--total-steps", (saved // 80 + 2) * 80, "--wandb", "disabled"]
    assert run("train_mt10", *options, *more).code == 0
    assert_gapless(read_metrics(path))


@pytest.fixture
def without_override():
    """What makes root obey permissions, as everyone else does."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root obeys no permissions, and there is no setpriv to make it")
    capabilities = "-dac_override,-dac_read_search"
    return ("setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}")


def test_a_directory_that_becomes_read_only_ends_the_run_unharmed(
    start, run, endless, tmp_path, without_override, checkpoints, read_metrics, assert_gapless
):
    path = tmp_path / "run"
    script = start("train_mt10", *endless, before=without_override)
    script.wait_until(lambda: len(checkpoints(path)) == 2)
    for directory in (path / "checkpoints", path):
        directory.chmod(0o555)
    result = script.wait()
    assert result.code == 1
    assert f"{path}: it may not be written any more, and 5 saves in a row" in result.err
    assert result.err.count("; try ") == 4
    assert "Traceback" not in result.err
    refused = run("train_mt10", *endless, "--resume", before=without_override)
    assert refused.code == 2
    assert "cannot be written" in refused.err
    for directory in (path, path / "checkpoints"):
        directory.chmod(0o755)
    saved = checkpoints(path)[-1]
    assert run("train_mt10", *endless, "--resume", "--total-steps", saved + 80).code == 0
    assert_gapless(read_metrics(path))


def test_a_directory_that_is_moved_away_ends_the_run_and_can_be_resumed_there(
    start, run, endless, tmp_path, checkpoints, read_metrics, assert_gapless
):
    path, moved = tmp_path / "run", tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    script = start("train_mt10", *endless)
    script.wait_until(lambda: len(checkpoints(path)) == 2)
    path.rename(moved)
    result = script.wait()
    assert result.code == 1
    assert "it is no longer there, and 5 saves in a row have failed" in result.err
    assert not path.exists(), "half a run must not appear in its place"
    saved = checkpoints(moved)[-1]
    options = [*endless, "--resume", "--run-dir", moved, "--total-steps", saved + 80]
    assert run("train_mt10", *options).code == 0
    assert_gapless(read_metrics(moved))


def test_metrics_that_are_removed_are_begun_anew_and_checkpoints_go_on(
    start, run, endless, tmp_path, reached, checkpoints, read_metrics
):
    path = tmp_path / "run"
    script = start("train_mt10", *endless)
    script.wait_until(lambda: len(checkpoints(path)) == 2)
    (path / "metrics.jsonl").unlink()
    script.wait_until(lambda: script.said("removed or replaced") and reached() > 0)
    step = reached()
    script.wait_until(lambda: reached() >= step + 400 and checkpoints(path)[-1] > step)
    script.signal(signal.SIGTERM)
    result = script.wait()
    assert result.code == 143
    assert result.err.count("WARNING") == 1
    more = ["--resume", "--total-steps", (checkpoints(path)[-1] // 80 + 2) * 80]
    resumed = run("train_mt10", *endless, *more)
    assert resumed.code == 0
    assert "not what it was" not in resumed.err
    steps = [row["progress/env_steps"] for row in read_metrics(path)]
    assert sorted(set(steps)) == list(range(steps[0], steps[-1] + 1, 80)), "no later line is lost"


def test_a_stop_whose_save_fails_does_not_end_as_if_it_were_saved(
    start, endless, tmp_path, reached
):
    path = tmp_path / "run"
    script = start("train_mt10", *endless, "--checkpoint-every", 10**9, "--log-every", 800)
    script.wait_until(reached)
    path.rename(tmp_path / "elsewhere")
    script.signal(signal.SIGTERM)
    result = script.wait()
    assert result.code == 1
    assert "stopped, but the last save failed" in result.err
    assert "stopped; to go on" not in result.err


def test_a_directory_that_is_removed_ends_the_run(start, endless, tmp_path, checkpoints):
    path = tmp_path / "run"
    script = start("train_mt10", *endless)
    script.wait_until(lambda: checkpoints(path))
    path.rename(tmp_path / "doomed")  # in one go, lest it saves into what is being removed
    shutil.rmtree(tmp_path / "doomed")
    result = script.wait()
    assert result.code == 1
    assert "no longer there" in result.err
    assert "lines: they could not be written" in result.err
    assert "Traceback" not in result.err
    assert not path.exists()
