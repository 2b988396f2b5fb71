"""Long runs compile their updates by themselves, and go on where that does not work."""

import contextlib
import os
import signal
import subprocess

import pytest

from mtrl.checkpoint import load_latest

UNCOMPILED = "updates are taken uncompiled, which takes longer and rounds otherwise: "


@pytest.fixture
def stop(read_metrics, tmp_path):
    """Stop a training once it has learned; return what it said and what it was compiled by."""

    def stop(script):
        lines = len(read_metrics(tmp_path / "run")) if (tmp_path / "run").exists() else 0
        script.wait_until(lambda: len(read_metrics(tmp_path / "run")) >= lines + 3)
        script.signal(signal.SIGTERM)
        result = script.wait()
        assert result.code == 143
        assert "Traceback" not in result.err
        assert read_metrics(tmp_path / "run")[-1]["progress/updates"] > 0
        state = load_latest(tmp_path / "run" / "checkpoints").state
        return result.err, state["circumstances"]["compiled by"]

    return stop


def test_a_long_run_is_compiled_and_goes_on_without_a_compiler_and_says_so(start, endless, stop):
    options = [*endless, "--compile", "auto"]
    said, compiler = stop(start("train_mt10", *options))
    assert "compiling an update" in said
    assert UNCOMPILED not in said
    none = {"CXX": "no-such-compiler"}
    said, without = stop(start("train_mt10", *options, "--resume", environment=none))
    assert f"{UNCOMPILED}`--compile` needs a C++ compiler, found none" in said
    assert f"compiled by {compiler} -> None" in said
    assert without is None


def test_a_full_temporary_folder_costs_a_compiled_run_no_checkpoint(
    start, endless, stop, disk, checkpoints, tmp_path
):
    subprocess.run(["mount", "-o", "remount,size=256m", disk], check=True)  # what compiling takes
    options = [*endless, "--compile", "on"]
    script = start("train_mt10", *options, environment={"TMPDIR": str(disk)})
    script.wait_until(lambda: script.said("compiling an update"))
    script.wait_until(lambda: checkpoints(tmp_path / "run"))
    for size in (1 << 20, 1 << 12):
        with contextlib.suppress(OSError), (disk / f"{size}").open("wb", buffering=0) as file:
            while file.write(bytes(size)) == size:
                pass
    assert os.statvfs(disk).f_bavail == 0
    saved = checkpoints(tmp_path / "run")[-1]
    script.wait_until(lambda: checkpoints(tmp_path / "run")[-1] > saved)
    _, compiler = stop(script)
    assert compiler is not None


def test_a_run_that_finds_no_room_to_compile_in_goes_on_and_says_so(start, endless, stop, disk):
    room = {"TORCHINDUCTOR_CACHE_DIR": str(disk)}
    said, compiler = stop(start("train_mt10", *endless, "--compile", "on", environment=room))
    assert "compiling an update" in said
    assert UNCOMPILED in said
    assert "No space left on device" in said
    assert compiler is None
