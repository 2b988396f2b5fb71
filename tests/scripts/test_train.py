import json
import re
import runpy
import signal
from itertools import pairwise
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
ENDLESS = ("--total-steps", str(10**9))


def steps_of(metrics, kind):
    return [
        line["progress/env_steps"]
        for line in metrics
        if any(name.startswith(kind) for name in line)
    ]


def assert_gapless(metrics, total):
    """Neither missing nor doubled lines: 80 steps between logs and 160 between evaluations."""
    assert steps_of(metrics, "time/env_steps_per_second") == list(range(80, total + 1, 80))
    assert steps_of(metrics, "eval/") == list(range(160, total + 1, 160))
    for before, after in pairwise(metrics):
        assert before["progress/env_steps"] <= after["progress/env_steps"]
        assert before["progress/updates"] <= after["progress/updates"]
        assert before["time/seconds"] <= after["time/seconds"]


def test_a_run_directory_holds_everything(finished, read_metrics):
    path, result = finished
    config = json.loads((path / "config.json").read_text())
    assert config["config"]["benchmark"] == ["toy"]
    assert config["config"]["agent"]["critic_width"] == 8
    assert config["versions"]["torch"]
    metrics = read_metrics(path)
    summary = json.loads((path / "summary.json").read_text())
    assert summary["env_steps"] == metrics[-1]["progress/env_steps"] == 400
    assert summary["eval/success_rate"] == metrics[-1]["eval/success_rate"]
    assert summary["protocol"]["episodes"] == 4 * 50
    names = sorted(checkpoint.name for checkpoint in path.glob("checkpoints/*"))
    assert names[-2:] == ["step_000000000320", "step_000000000400"]
    assert names[:-2] in ([], ["step_000000000160"])  # the best, if it is neither of these
    assert list(path.glob("wandb/offline-run-*/*.wandb"))
    assert not list(path.rglob("*.pt")) + list(path.rglob("*.pkl"))
    assert "wandb sync" in result.err


def test_without_a_terminal_progress_is_plain_lines_with_an_eta(finished):
    _, result = finished
    assert re.search(r"400/400 steps .* steps/s .* updates/s .* ETA 0:00:00", result.err)
    assert re.fullmatch(r"[ -~\n]*", result.err), "control characters in what may be a log file"


def test_a_run_without_a_name_gets_one(finished):
    _, result = finished
    name = r"runs/toy_seed1_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d"
    assert re.search(rf"^INFO: run directory: {name}$", result.err, re.MULTILINE)


def test_interrupted_killed_and_resumed_a_run_has_no_gap_and_nothing_twice(
    start, run, small, tmp_path, read_metrics
):
    path = tmp_path / "run"
    options = [*small, "--wandb", "disabled", "--run-dir", "run"]

    def reached():
        return max(steps_of(read_metrics(path), ""), default=0)

    def newest_checkpoint():
        return max(int(entry.name[5:17]) for entry in path.glob("checkpoints/step_*"))

    script = start("train_mt10", *options, *ENDLESS)
    script.wait_until(lambda: reached() >= 400)
    script.signal(signal.SIGINT)
    result = script.wait()
    assert result.code == 130
    *_, last = result.err.splitlines()
    assert last == "INFO: stopped; to go on: --resume --run-dir run"
    assert "Traceback" not in result.err
    saved = newest_checkpoint()
    assert saved >= reached()
    assert not (path / "summary.json").exists()
    assert not (path / "wandb").exists()

    script = start("train_mt10", *options, *ENDLESS, "--resume")
    script.wait_until(lambda: reached() >= saved + 400)
    script.signal(signal.SIGKILL)
    assert script.wait().code == -signal.SIGKILL
    saved = newest_checkpoint()

    total = (saved // 160 + 2) * 160
    result = run("train_mt10", *options, "--total-steps", total, "--resume")
    assert result.code == 0
    assert f"step_{saved:012d}" in result.err
    metrics = read_metrics(path)
    assert_gapless(metrics, total)
    assert metrics[-1]["progress/updates"] == (total - 80) // 40
    assert json.loads((path / "summary.json").read_text())["env_steps"] == total


def test_a_run_killed_before_its_first_checkpoint_starts_over(
    start, run, small, tmp_path, read_metrics
):
    path = tmp_path / "run"
    options = [*small, "--wandb", "disabled", "--run-dir", "run", "--checkpoint-every", 10**6]
    script = start("train_mt10", *options, *ENDLESS)
    script.wait_until(lambda: len(read_metrics(path)) >= 3)
    script.signal(signal.SIGKILL)
    script.wait()
    result = run("train_mt10", *options, "--total-steps", 320, "--resume")
    assert result.code == 0
    assert "starts from the beginning" in result.err
    assert_gapless(read_metrics(path), 320)


def test_a_finished_run_can_be_prolonged(finished, run, small, read_metrics):
    path, _ = finished
    options = ["--total-steps", 480, "--wandb", "disabled", "--run-dir", path, "--resume"]
    assert run("train_mt10", *small, *options).code == 0
    metrics = read_metrics(path)
    assert steps_of(metrics, "time/env_steps_per_second") == [80, 160, 240, 320, 400, 480]
    # The one at 400 was the last of the shorter run.
    assert steps_of(metrics, "eval/") == [160, 320, 400, 480]
    assert json.loads((path / "summary.json").read_text())["env_steps"] == 480
    record = json.loads((path / "config.json").read_text())
    steps = [each["config"]["total_steps"] for each in (*record["history"], record)]
    assert steps == [400, 480]


def test_a_finished_run_says_so_and_with_fewer_steps_it_is_refused(finished, run, small, snapshot):
    path, _ = finished
    options = [*small, "--wandb", "offline", "--run-dir", path, "--resume", "--total-steps"]
    result = run("train_mt10", *options, 400)
    assert result.code == 0
    continuing = result.err.index("continuing from")
    assert continuing < result.err.index("all 400 steps are taken; to go on, give more --total-")
    assert "400/400 steps (100.0%)" in result.err
    before = snapshot(path)
    result = run("train_mt10", *options, 240)
    assert result.code == 2
    assert "`--total-steps` is 240, but the run has taken 400: give more." in result.err
    assert "changed setting" not in result.err
    assert snapshot(path) == before


def test_a_run_that_lacks_only_its_summary_gets_it(finished, run, small):
    path, _ = finished
    before = json.loads((path / "summary.json").read_text())
    (path / "summary.json").unlink()
    options = ["--total-steps", 400, "--wandb", "offline", "--run-dir", path, "--resume"]
    assert run("train_mt10", *small, *options).code == 0
    after = json.loads((path / "summary.json").read_text())
    del before["seconds"], after["seconds"]  # the first include its last checkpoint
    assert after == before


def test_the_mt50_script_is_the_same_program_with_other_defaults(monkeypatch, capsys):
    helps = {}
    for script in ("train_mt10", "train_mt50"):
        path = str(SCRIPTS / f"{script}.py")
        monkeypatch.setattr("sys.argv", [path, "--help"])
        with pytest.raises(SystemExit, match="0"):
            runpy.run_path(path, run_name="__main__")
        helps[script] = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: MT10)" in helps["train_mt10"]
    assert "(default: MT50)" in helps["train_mt50"]
    without_defaults = {
        re.sub(r"\(default: [^)]*\)|train_mt\d0", "", text).replace(" ", "")
        for text in helps.values()
    }
    assert len(without_defaults) == 1


def test_real_meta_world_trains_stops_inside_an_evaluation_and_saves(
    start, small, tmp_path, read_metrics
):
    path = tmp_path / "run"
    options = ["--benchmark", "reach-v3", "--wandb", "disabled", "--run-dir", "run"]
    often = ["--log-every", 1000, "--eval-every", 1000, "--checkpoint-every", 10**6]
    script = start("train_mt10", *small, *options, *often, *ENDLESS)
    script.wait_until(lambda: read_metrics(path))
    script.signal(signal.SIGINT)  # an evaluation of 50 episodes has just begun
    assert script.wait().code == 130
    (line,) = read_metrics(path)
    assert line["progress/env_steps"] == 1000
    assert line["progress/updates"] == 91  # the 92nd is taken during the next step
    assert line["train/return/reach-v3"] > 0
    assert line["train/success_rate/reach-v3"] in (0, 0.5, 1)
    assert line["gradients/critic/conflict_rate"] == 0
    (checkpoint,) = path.glob("checkpoints/*")
    assert checkpoint.name == "step_000000001000"


@pytest.mark.slow
def test_a_trained_agent_beats_a_random_one(run, tmp_path):
    options = [
        *("--benchmark", "toy", "--threads", 1, "--device", "cpu", "--precision", "fp32"),
        *("--envs-per-task", 4, "--total-steps", 48_000, "--warmup-steps", 2_000),
        *("--update-ratio", 0.125, "--eval-every", 24_000),
        *("--critic-width", 64, "--critic-depth", 2, "--actor-width", 64, "--actor-depth", 2),
        *("--critic-learning-rate", 1e-3, "--actor-learning-rate", 1e-3, "--batch-size", 64),
        *("--eval-envs-per-task", 50),
        *("--wandb", "disabled", "--run-dir", "run"),
    ]
    result = run("train_mt10", *options)
    assert result.code == 0, result.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    # Random actions reach the goal in fewer than one of twenty episodes.
    assert summary["eval/success_rate"] > 0.5
    for task in ("toy-reach", "toy-left", "toy-mirror", "toy-right"):
        assert summary[f"eval/success_rate/{task}"] > 0.25
