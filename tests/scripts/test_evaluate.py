import json


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
    assert stored == summary
    after = snapshot(path)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 1


def test_a_table_that_cannot_be_stored_is_shown_all_the_same(finished, run):
    path, _ = finished
    (path / "evaluation_400.json").mkdir()  # which a file cannot replace
    result = run("evaluate", "run")
    assert result.code == 2
    assert "toy-mirror" in result.out
    (line,) = result.err.splitlines()
    assert "evaluation_400.json cannot be written" in line
