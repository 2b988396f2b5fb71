"""What a user sees of `scripts/compare.py`."""

import numpy as np
import pytest

from mtrl.statistics import bootstrap_interval, iqm, probability_of_improvement

SEEDS = {
    "good": [[0.9, 0.6], [0.8, 1.0], [0.7, 0.9]],
    "poor": [[0.1, 0.3], [0.6, 0.2]],
}


@pytest.fixture
def two_groups(make_run):
    """Two groups of runs at 1000, 2000 and 3000 steps, with the scores above at the last."""
    for name, runs in SEEDS.items():
        for seed, last in enumerate(runs, start=1):
            success = [[0.0, 0.2], [0.5, 0.5], last]
            make_run(
                f"{name}_seed{seed}",
                success,
                (1000, 2000, 3000),
                minutes=[seed, 2 * seed, 4 * seed],
                config={"benchmark": ["toy"], "seed": seed, "name": name},
            )


def cells(out, first):
    """Find the row that begins with a name in each of the Markdown tables, split into cells."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()]
    return [row for row in rows if row and row[0] == first]


def span(statistic, *scores):
    low, high = bootstrap_interval(statistic, *scores, generator=np.random.default_rng(0))
    return f"{low:.2f} to {high:.2f}"


def test_the_table_holds_the_statistics_of_the_last_common_evaluation(two_groups, run):
    names = [f"{name}_seed{s}" for name, runs in SEEDS.items() for s in range(1, len(runs) + 1)]
    result = run("compare", *names, "--threshold", "0.5", "0.8", "--per-task", "--markdown")
    assert result.code == 0, result.err
    assert result.err == ""
    good, poor = (np.array(runs) for runs in SEEDS.values())
    success, half, most, improvement = cells(result.out, "good")
    assert success[1:5] == ["3", "3,000", "1,500", "8.0"]
    assert success[5:] == [f"{iqm(good):.3f}", span(iqm, good), f"{good.mean():.3f}"]
    # The first evaluation with a mean of 0.5 is the second: 2, 4 and 6 minutes. Of 0.8: the last
    # of the second run and of the third, so the median of three is the later of these.
    assert half[1:] == ["0.5", "3 of 3", "2,000", "1,000", "4.0"]
    assert most[1:] == ["0.8", "2 of 3", "3,000", "1,500", "12.0"]
    odds = probability_of_improvement(good, poor)
    assert improvement[1:] == [
        "",
        f"{odds:.2f} ({span(probability_of_improvement, good, poor)})",
    ]
    assert cells(result.out, "poor")[1][1:] == ["0.5", "2 of 2", "2,000", "1,000", "3.0"]
    assert cells(result.out, "poor")[2][1:] == ["0.8", "0 of 2", "-", "-", "-"]
    (task,) = cells(result.out, "b")
    assert task[1:] == [f"{good[:, 1].mean():.2f}", f"{poor[:, 1].mean():.2f}"]
    for told in ("fewer than five runs", "Seeds: good 1, 2, 3; poor 1, 2", "an abacus, 2 cores"):
        assert told in result.out


@pytest.mark.parametrize(
    ("device", "machine", "told"),
    [
        ("auto", {}, "an abacus, 2 cores"),  # of a run from before the others were noted
        ("auto", {"usable_cores": 2, "gpu": None}, "an abacus, 2 cores"),
        ("auto", {"usable_cores": 1, "gpu": None}, "an abacus, 1 of 2 cores"),
        ("auto", {"usable_cores": 2, "gpu": "a loom"}, "a loom, an abacus, 2 cores"),
        ("cpu", {"usable_cores": 2, "gpu": "a loom"}, "an abacus, 2 cores"),
    ],
)
def test_the_hardware_is_told(device, machine, told, run, make_run):
    config = {"benchmark": ["reach-v3"], "device": device, "seed": 1}
    make_run("one", [[1.0, 0.6]], (2000,), config=config, machine=machine)
    result = run("compare", "one")
    assert result.code == 0, result.err
    assert told in result.out
    assert ("a loom" in result.out) is ("a loom" in told)


def test_one_run_has_no_interval_and_budgets_can_be_set_equal(two_groups, run, make_run):
    make_run("short_seed1", [[1.0, 0.6]], (2000,))
    result = run("compare", "good_seed1", "short_seed1", "--markdown")
    assert result.code == 0, result.err
    assert cells(result.out, "good")[0][5:] == ["0.750", "-", "0.750"]
    assert cells(result.out, "good")[2][1:] == ["", "0.25 (-)"]
    assert "no interval" in result.out
    assert "different steps" in result.out
    result = run("compare", "good_seed1", "short_seed1", "--steps", "2500", "--markdown")
    assert cells(result.out, "good")[0][1:3] == ["1", "2,000"]
    assert "different steps" not in result.out


def test_groups_can_be_compared_after_as_many_minutes(two_groups, run):
    # The first two seeds of `good` take 2 and 4 minutes to the second evaluation, 3 on average.
    names = ["good=good_seed[12]", "poor_seed1", "--markdown", "--threshold", "0.1"]
    result = run("compare", *names, "--minutes", "3.5")
    assert result.code == 0, result.err
    good, reached, _ = cells(result.out, "good")
    assert good[2:5] == ["2,000", "1,000", "3.0"]
    assert cells(result.out, "poor")[0][2:5] == ["2,000", "1,000", "2.0"]
    assert reached[1:] == ["0.1", "2 of 2", "1,000", "500", "1.5"]
    # Each run's own clock counts here: the second took 4 minutes.
    out = run("compare", *names[:-1], "0.5", "--minutes", "3.5").out
    assert cells(out, "good")[1][1:3] == ["0.5", "1 of 2"]
    # The other budget still counts beside it.
    both = run("compare", *names, "--minutes", "3.5", "--steps", "1000").out
    assert cells(both, "good")[0][2] == "1,000"
    assert "ended sooner" not in both


def test_the_minutes_that_are_named_are_enough(make_run, run):
    make_run("late_seed1", [[0.2, 0.2]], (1000,), minutes=[12.34])
    told = run("compare", "late_seed1", "--minutes", "5").err
    least = told.split("at least ")[1].split(",")[0]
    assert least == "12.4"
    assert run("compare", "late_seed1", "--minutes", least).code == 0


def test_with_a_budget_what_comes_later_is_not_reached(make_run, run):
    make_run("long_seed1", [[0.2, 0.2], [0.9, 0.9]])
    make_run("short_seed1", [[0.2, 0.2]], (1000,))
    names = ["long_seed1", "short_seed1", "--markdown"]
    result = run("compare", *names, "--steps", "1000")
    for name in ("long", "short"):
        assert cells(result.out, name)[1][1:] == ["0.5", "0 of 1", "-", "-", "-"]
    assert "different steps" not in result.out
    assert "ended sooner" not in result.out
    result = run("compare", *names)
    assert cells(result.out, "long")[1][1:3] == ["0.5", "1 of 1"]
    assert "Some runs of short ended sooner than others" in result.out
    # What it had reached by then is known.
    assert "ended sooner" not in run("compare", *names, "--threshold", "0.2").out


def test_a_bar_in_a_name_ends_no_cell_of_markdown(two_groups, run):
    out = run("compare", "a|b=good_seed1", "--markdown").out
    assert r"a\|b" in out
    assert "a|b" not in out


def test_a_real_training_can_be_compared(finished, run):
    result = run("compare", "run")
    assert result.code == 0, result.err
    rows = [line.split() for line in result.out.splitlines()]
    success, threshold = [row for row in rows if row[:1] == ["run"]]
    assert success[:4] == ["run", "1", "400", "100"]
    assert threshold[1] == "0.5"


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["nowhere"], ["`RUN` nowhere does not exist"]),
        ([], ["`RUN` is missing"]),
        (["good_seed1", "--threshold", "50"], ["`--threshold` is 50", "up to 1"]),
        (["good_seed1", "--threshold"], ["`--threshold` has no value"]),
        (["good_seed1", "--steps", "999"], ["`--steps` is 999", "at least 1000", "good"]),
        (["good_seed1", "--minutes", "0.9"], ["`--minutes` is 0.9", "at least 1.0", "good"]),
        (["good_seed1", "--stepps", "999"], ["--stepps", "--steps"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input_ends_with_one_line(two_groups, run, options, fragments):
    result = run("compare", *options)
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    assert all(fragment in line for fragment in fragments)
    assert result.out == ""
