import json
import logging

import numpy as np
import pytest

from mtrl.curves import RunCurve, at_common_steps, read_curve
from mtrl.errors import UserError


def line(steps, seconds=1.0, **success):
    rates = {f"eval/success_rate/{task}": rate for task, rate in success.items()}
    return {"progress/env_steps": steps, "time/seconds": seconds, **rates}


@pytest.fixture
def write(tmp_path):
    def write(*rows, tail=""):
        path = tmp_path / "metrics.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
        return path

    return write


def curve(steps, success, tasks=("a", "b"), seconds=None):
    steps = np.array(steps)
    seconds = steps * 0.5 if seconds is None else np.array(seconds, dtype=float)
    return RunCurve(tasks, steps, seconds, np.array(success, dtype=float))


def test_evaluations_are_read_and_nothing_else(write):
    training = {"progress/env_steps": 5, "time/seconds": 0.5, "train/success_rate/a": 1.0}
    path = write(
        training, line(10, 1, b=0.5, a=0.25), training | line(20, 2.5, a=1, b=0), tail='{"ev'
    )
    found = read_curve(path)
    assert found.task_names == ("b", "a")
    assert found.steps.tolist() == [10, 20]
    assert found.seconds.tolist() == [1.0, 2.5]
    assert found.success.tolist() == [[0.5, 0.25], [0.0, 1.0]]


def test_an_evaluation_without_one_of_the_tasks_is_left_out_and_told_of(write, caplog):
    rows = line(10, a=1.0), line(20, a=1.0, b=0.5), line(30, a=1.0, b=None)
    with caplog.at_level(logging.WARNING, "mtrl"):
        assert read_curve(write(*rows)).steps.tolist() == [20]
    assert "2 of 3 evaluations" in caplog.text


@pytest.mark.parametrize(
    ("rows", "fragment"),
    [
        ([], "no evaluation"),
        ([{"progress/env_steps": 5}], "no evaluation"),
        ([line(10, a=None)], "no evaluation"),
        ([line(20, a=0.5), line(20, a=0.6)], "goes back in steps"),
        ([line(20, a=0.5), line(10, a=0.6)], "goes back in steps"),
        ([line(10, 5.0, a=0.5), line(20, 4.0, a=0.6)], "goes back in time"),
        ([line(10, a=1.5)], "outside of 0 to 1"),
        ([line(10, a=float("nan"))], "outside of 0 to 1"),
        ([line(10, a="high")], "eval/success_rate/a = 'high'"),
        ([line(10, a=True)], "eval/success_rate/a = True"),
        ([line(1.5, a=0.5)], "progress/env_steps = 1.5"),
        ([line(10, seconds=None, a=0.5)], "time/seconds = None"),
        ([{"eval/success_rate/a": 0.5}], "progress/env_steps = None"),
    ],
)
def test_what_is_no_curve_is_refused_in_one_line(write, rows, fragment):
    path = write(*rows)
    with pytest.raises(UserError) as refusal:
        read_curve(path)
    assert fragment in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_damaged_line_is_named(write):
    with pytest.raises(UserError, match="damaged in line 2"):
        read_curve(write(line(10, a=0.5), tail="{oops\n" + json.dumps(line(20, a=1.0)) + "\n"))


def test_the_first_evaluation_that_is_high_enough_counts():
    run = curve([10, 20, 30], [[0, 0.5], [1, 0.5], [0.5, 0.5]], seconds=[3, 6, 9])
    assert run.reached(0.75) == (20, 6)
    assert run.reached(0.25) == (10, 3)
    assert run.reached(0.76) == (np.inf, np.inf)


def test_common_steps_hold_what_was_measured_and_nothing_else():
    one = curve([10, 20, 30], [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    other = curve([20, 25, 30, 40], [[0.9, 0.8], [0, 0], [0.7, 0.6], [0, 0]], tasks=("b", "a"))
    group = at_common_steps([one, other], ["a", "b"])
    assert group.task_names == ("a", "b")
    assert group.steps.tolist() == [20, 30]
    assert group.seconds.tolist() == [[10, 10], [15, 15]]
    assert group.success.tolist() == [[[0.3, 0.4], [0.8, 0.9]], [[0.5, 0.6], [0.6, 0.7]]]


def test_runs_without_a_common_step_form_no_group():
    with pytest.raises(UserError, match="never evaluated at the same steps"):
        at_common_steps([curve([10], [[0, 0]]), curve([11], [[0, 0]])], ["a", "b"])
