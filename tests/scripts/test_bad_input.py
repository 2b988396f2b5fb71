"""Each mistake ends within five seconds, with one line that helps, and harms nothing."""

import pytest
import torch

from mtrl.run_lock import RunLock

MAX_SECONDS = 5


def assert_refused(result, *fragments):
    assert result.code == 2, result.err
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    for fragment in fragments:
        assert fragment in line
    assert result.out == ""
    # Processor time, since a busy machine says nothing about the program.
    assert result.cpu_seconds < MAX_SECONDS


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--benchmark", "MT11"], ["`benchmark`", "'MT11'", "did you mean", "'MT10'"]),
        (["--benchmark", "toy-left", "raech-v3"], ["`benchmark`", "'raech-v3'", "'reach-v3'"]),
        (["--benchmark", "reach-v3,push-v3"], ["'reach-v3,push-v3'", "with spaces"]),
        (["--benchmark", "hover-v3"], ["'hover-v3' is not known", "--import"]),
        (["--import", "nowhere"], ["`--import` nowhere", "No module named 'nowhere'"]),
        (["--total-steps", "1e6"], ["--total-steps", "no whole number: '1e6'"]),
        (["--resume"], ["`--resume` needs a run", "--run-dir"]),
        (["--critic-weighting", "pgcrad"], ["--critic-weighting", "'pgcrad'", "'pcgrad'"]),
        (["--device", "tpu"], ["--device", "'tpu'", "'auto', 'cpu', 'cuda'"]),
        (["--batch-size", "501"], ["`--batch-size` is 501", "--replay-capacity 500"]),
        (["--envs-per-task", "0"], ["`--envs-per-task` is 0", "at least 1"]),
        (["--critic-width", "-8"], ["`--critic-width`", "-8", "at least 1"]),
        (["--discount", "high"], ["--discount", "'high'", "--help"]),
        (["--replay-capacity", 10**12], ["`--replay-capacity` is 1000000000000", "GiB", "less"]),
        (
            ["--replay-capacity", 10**8, "--batch-size", 10**8],
            ["`--batch-size` is 100000000", "GiB", "to spare"],
        ),
        (["--critic-width", 10**6, "--critic-depth", 2], ["`--critic-width` is 1000000", "GiB"]),
        (
            ["--critic-depth", 10**9, "--batch-size", 64],
            ["`--critic-depth` is 1000000000", "GiB"],
        ),
        (["--actor-width", 10**6, "--actor-depth", 2], ["`--actor-width` is 1000000", "GiB"]),
        (
            ["--critic-values", "categorical", "--value-bins", 10**12],
            ["`--value-bins` is 1000000000000", "GiB"],
        ),
        (["--task-embedding", 10**12], ["`--task-embedding` is 1000000000000", "GiB"]),
        (["--reset-every", 10**30], ["`--reset-every` must be", "2^24", f"found {10**30}"]),
        (["--learning-rate-half-life", 1e-300], ["`--learning-rate-half-life`", "at least 1"]),
        (["--threads", 10**12], ["`--threads` is 1000000000000", "at most 1024"]),
        (["--update-ratio", 1e300], ["`--update-ratio` is 1e+300", "at most 1000000"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_options_that_cannot_work(run, small, tmp_path, snapshot, options, fragments):
    assert_refused(run("train_mt10", *small, *options), *fragments)
    assert snapshot(tmp_path) == {}, "a refused run leaves nothing behind"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none(run, small, tmp_path, snapshot):
    result = run("train_mt10", *small, "--device", "cuda")
    assert_refused(result, "`--device` is cuda", "no GPU", "--device cpu")
    assert snapshot(tmp_path) == {}


def test_a_run_directory_that_cannot_be_written(run, small, tmp_path):
    # A directory below a file cannot be made by anyone, not even by root.
    (tmp_path / "file").write_text("precious")
    result = run("train_mt10", *small, "--run-dir", "file/run")
    assert_refused(result, "`--run-dir` file/run cannot be written", "may write to")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ([], ["`--run-dir` run is not empty", "another name", "`--resume`"]),
        (["--resume", "--seed", "7"], ["`--resume`", "`--seed`: 1 -> 7", "new `--run-dir`"]),
    ],
    ids=["exists", "resumed with another configuration"],
)
def test_a_run_that_is_there_stays_as_it_is(run, small, finished, snapshot, options, fragments):
    path, _ = finished
    before = snapshot(path)
    as_before = ["--total-steps", "400", "--wandb", "offline", "--run-dir", "run"]
    assert_refused(run("train_mt10", *small, *as_before, *options), *fragments)
    after = snapshot(path)
    assert {name: after[name] for name in before} == before


def test_a_run_that_a_process_is_writing(run, small, finished, tmp_path):
    path, _ = finished
    lock = RunLock(path)
    try:
        result = run("train_mt10", *small, "--total-steps", "400", "--run-dir", path, "--resume")
    finally:
        lock.release()
    assert_refused(result, "`--run-dir`", "in use by pid", "stop that, or give another name")


def damage(path):
    for file in path.glob("checkpoints/*/tensors.safetensors"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


def remove(path):
    for file in path.glob("checkpoints/*/*"):
        file.unlink()
    for directory in path.glob("checkpoints/*"):
        directory.rmdir()


@pytest.mark.parametrize(
    ("harm", "script", "fragments"),
    [
        (damage, "train_mt10", ["no usable checkpoint", "SHA-256", "another directory"]),
        (damage, "evaluate", ["no usable checkpoint", "SHA-256"]),
        (remove, "train_mt10", ["has no checkpoint", "400 steps", "new `--run-dir`"]),
        (remove, "evaluate", ["no usable checkpoint"]),
    ],
)
def test_checkpoints_that_are_damaged_or_missing(
    run, small, finished, snapshot, harm, script, fragments
):
    path, _ = finished
    harm(path)
    before = snapshot(path)
    options = [path]
    if script == "train_mt10":
        offline = ["--total-steps", "400", "--wandb", "offline"]
        options = [*small, *offline, "--run-dir", path, "--resume"]
    assert_refused(run(script, *options), *fragments)
    assert snapshot(path) == before


def test_evaluating_what_is_no_run(run, tmp_path, snapshot):
    assert_refused(run("evaluate", "nowhere"), "nowhere does not exist", "earlier run")
    assert_refused(run("evaluate", __file__), f"{__file__} is a file", "earlier run")
    assert snapshot(tmp_path) == {}
