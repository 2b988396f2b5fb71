import json

from mtrl.manifest import read_label


def test_the_table_is_printed_and_stored_and_agrees_with_training(finished, run, snapshot):
    path, _ = finished
    before = snapshot(path)
    result = run("evaluate", "run")
    assert result.code == 0, result.err
    rows = [line.strip("│┃ ").split() for line in result.out.splitlines()]
    stored = json.loads((path / "evaluation_400.json").read_text())
    for task in ("toy-reach", "toy-left", "toy-mirror", "toy-right"):
        (row,) = [row for row in rows if row and row[0] == task]
        assert f"{stored[f'eval/success_rate/{task}']:.2f}" in row
    assert any(row and row[0] == "mean" for row in rows)
    # The same checkpoint, goals and deterministic actions as the last evaluation in training, but
    # here episodes are played to their end.
    summary = json.loads((path / "summary.json").read_text())
    del stored["seconds"], summary["seconds"]  # the summary's include the last checkpoint
    for task in ("toy-reach", "toy-left", "toy-mirror", "toy-right"):
        whole = stored.pop(f"eval/return/{task}")
        assert 0 < summary.pop(f"eval/return_until_success/{task}") <= whole
    assert stored["protocol"].pop("episodes_end") == "by time"
    assert summary["protocol"].pop("episodes_end") == "with success or by time"
    (newest,) = (path / "checkpoints").glob("step_*400")
    assert (stored.pop("chosen"), stored.pop("checkpoint")) == ("newest", newest.name)
    assert stored == summary
    after = snapshot(path)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 1


def test_the_best_can_be_evaluated_instead_of_the_newest(finished, run):
    path, _ = finished
    labels = [read_label(checkpoint) for checkpoint in (path / "checkpoints").iterdir()]
    best = max((label.score, label.env_steps) for label in labels if label.score is not None)
    result = run("evaluate", "run", "--best")
    assert result.code == 0, result.err
    assert "chosen for its success" in result.out
    stored = json.loads((path / f"evaluation_{best[1]}.json").read_text())
    assert stored["eval/success_rate"] == best[0]
    assert stored["chosen"] == "best"
    assert read_label(path / "checkpoints" / stored["checkpoint"]).score == best[0]


def test_a_table_that_cannot_be_stored_is_shown_all_the_same(finished, run):
    path, _ = finished
    (path / "evaluation_400.json").mkdir()  # which a file cannot replace
    result = run("evaluate", "run")
    assert result.code == 2
    assert "toy-mirror" in result.out
    *_, line = result.err.splitlines()
    assert "evaluation_400.json cannot be written" in line


OWN = """
from metaworld.env_dict import ENV_CLS_MAP

import envs
from envs.engine.tasks import find_task


class OwnReach(ENV_CLS_MAP["reach-v3"]):
    pass


envs.register_task("own-reach", OwnReach, find_task("reach-v3"))
"""


def test_a_task_of_ones_own_is_trained_on_resumed_and_evaluated(run, small, tmp_path, compiled):
    (tmp_path / "own.py").write_text(OWN)
    own = ["--import", "own"]
    options = [*small, "--benchmark", "own-reach", "--wandb", "disabled", "--run-dir", "run"]
    for more in (["--total-steps", 120], ["--total-steps", 160, "--resume"]):
        result = run("train_mt10", *options, *own, *more, environment=compiled)
        assert result.code == 0, result.err
    assert "import" not in (tmp_path / "run" / "config.json").read_text()
    result = run("evaluate", "run", *own, environment=compiled)
    assert result.code == 0, result.err
    assert "own-reach" in result.out
    result = run("evaluate", "run", environment=compiled)
    assert result.code == 2
    assert "'own-reach' is not known" in result.err
