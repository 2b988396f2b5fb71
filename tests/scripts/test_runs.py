"""Which runs form a group, and what it is called."""

import json

import numpy as np
import pytest

from mtrl.errors import UserError
from scripts.runs import protocol, read_groups, tasks_title

FLAT = [[0.0, 0.5], [0.5, 1.0]]


def members(groups):
    return {group.label: [run.path.parent.name for run in group.runs] for group in groups}


def config(**options):
    return {"benchmark": ["MT10"], "seed": 1, "agent": {"width": 8}, "wandb": "auto"} | options


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: read_groups([str(argument) for argument in arguments])


def test_runs_whose_configurations_differ_in_the_seed_only_are_one_group(make_run, read):
    for seed in (1, 2):
        for name, width in (("narrow", 8), ("wide", 64)):
            options = config(seed=seed, agent={"width": width}, threads=seed)
            make_run(f"{name}_seed{seed}", FLAT, config=options)
    found = read("wide_seed2", "narrow_seed1", "narrow_seed2", "wide_seed1")
    assert members(found) == {
        "wide": ["wide_seed2", "wide_seed1"],
        "narrow": ["narrow_seed1", "narrow_seed2"],
    }
    assert [[run.seed for run in group.runs] for group in found] == [[2, 1], [1, 2]]


def test_a_presets_name_makes_no_group(make_run, read):
    for seed, preset in enumerate(("default", "laptop")):
        make_run(preset, FLAT, config=config(seed=seed, preset=preset))
    (group,) = read("default", "laptop")
    assert len(group.runs) == 2


def test_a_seed_that_counts_twice_is_warned_about(make_run, read, caplog):
    for name, seed in (("one", 1), ("copy", 1), ("other", 2)):
        make_run(name, FLAT, config=config(seed=seed))
    read("one", "other")
    assert not caplog.messages
    read("mine=one", "mine=copy", "mine=other")
    (message,) = caplog.messages
    assert message.startswith("mine has more than one run with seed 1, ")


def test_what_a_group_leaves_out_of_its_longer_runs_is_told(make_run, read, caplog):
    make_run("short", FLAT, (1000, 2000))
    make_run("long", [*FLAT, FLAT[0]], (1000, 2000, 9000))
    read("A=long", "B=short")
    assert not caplog.messages
    read("both=short", "both=long")
    (message,) = caplog.messages
    assert message.startswith("both ends after 2,000 steps")
    assert "1 of 2 went on, to 9,000 at most" in message


def test_an_option_that_a_run_is_too_old_for_makes_no_group(make_run, read):
    make_run("old_seed1", FLAT, config=config())
    make_run(
        "new_seed2", FLAT, config=config(seed=2, agent={"width": 8, "normalize_rewards": False})
    )
    make_run(
        "other_seed3", FLAT, config=config(seed=3, agent={"width": 8, "normalize_rewards": True})
    )
    found = read("old_seed1", "new_seed2", "other_seed3")
    assert [[run.seed for run in group.runs] for group in found] == [[1, 2], [3]]


def test_names_that_do_not_tell_groups_apart_give_way_to_what_differs(make_run, read):
    for hour, (seed, width) in enumerate([(1, 8), (2, 8), (1, 64)]):
        options = config(seed=seed, agent={"width": width})
        make_run(f"MT10_seed{seed}_2026-01-02_0{hour}-00-00", FLAT, config=options)
    found = read(*(f"MT10_seed{s}_2026-01-02_0{h}-00-00" for h, s in enumerate((1, 2, 1))))
    assert [(group.label, len(group.runs)) for group in found] == [("width 8", 2), ("width 64", 1)]


def test_without_a_configuration_names_decide(make_run, read, tmp_path):
    for name in ("x_seed1", "x_seed2", "y-seed3", "seed4"):
        make_run(name, FLAT)
    kept = tmp_path / "x_seed9.jsonl"
    kept.write_bytes((tmp_path / "x_seed1" / "metrics.jsonl").read_bytes())
    found = read("x_seed1", "x_seed2/metrics.jsonl", kept, "y-seed3", "seed4")
    assert {group.label: len(group.runs) for group in found} == {"x": 3, "y": 1, "seed4": 1}


def test_a_kept_curve_finds_its_configuration_beside_it(make_run, read, tmp_path):
    for seed in (1, 2):
        run = make_run(f"run{seed}", FLAT)
        (tmp_path / f"kept{seed}.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
        record = {"command": "", "run": {"config": config(seed=seed), "id": "x"}}
        (tmp_path / f"kept{seed}.json").write_text(json.dumps(record))
    (group,) = read("kept1.jsonl", "kept2.jsonl")
    assert [run.seed for run in group.runs] == [1, 2]
    assert group.label == "kept1 / kept2"


def test_the_users_names_come_first_and_patterns_are_expanded(make_run, read, tmp_path):
    for seed in (1, 2, 3):
        make_run(f"runs/u_{seed}", FLAT, config=config(seed=seed))
    make_run("runs/odd=name", FLAT)
    found = read("mine=runs/u_[12]", f"other={tmp_path}/runs/u_3", "runs/odd=name")
    assert members(found) == {"mine": ["u_1", "u_2"], "other": ["u_3"], "odd=name": ["odd=name"]}


def test_groups_called_the_same_are_numbered(make_run, read):
    for parent in ("one", "two"):
        make_run(f"{parent}/x", FLAT, config=config() if parent == "one" else None)
    assert [group.label for group in read("one/x", "two/x")] == ["x", "x (2)"]


def test_tasks_are_put_into_the_first_runs_order(make_run, read):
    make_run("first", FLAT, tasks=("a", "b"))
    make_run("second", FLAT, tasks=("b", "a"))
    first, second = read("A=first", "B=second")
    assert first.curve.task_names == second.curve.task_names == ("a", "b")
    np.testing.assert_array_equal(second.curve.success[:, 0], np.array(FLAT)[:, ::-1])


def test_the_protocol_is_what_all_runs_agree_on(make_run, read):
    make_run("a", FLAT, config=config(reward_version="v2"))
    make_run("b", FLAT, config=config(reward_version="v1"))
    make_run("c", FLAT)
    assert protocol(read("a")).startswith("Meta-World 3.1.1, V2 rewards, each goal once")
    assert protocol(read("a", "b")).startswith("Meta-World 3.1.1, each goal once")
    assert protocol(read("a", "c")).startswith("each goal once")
    assert tasks_title(read("a", "b")) == "MT10"
    assert tasks_title(read("c")) == "a, b"


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ([], ["`RUN` is missing"]),
        (["nowhere"], ["nowhere does not exist", "metrics.jsonl"]),
        (["x=nowhere*"], ["nowhere* does not exist"]),
        (["nowhere*"], ["nowhere* does not exist", "NAME=PATTERN"]),
        (["=good"], ["=good", "NAME=RUN"]),
        (["x="], ["x=", "NAME=RUN"]),
        (["empty"], ["empty has no metrics.jsonl"]),
        (["early"], ["early/metrics.jsonl", "no evaluation"]),
        (["good", "good/metrics.jsonl"], ["given twice"]),
        (["good", "alien"], ["alien", "good", "different tasks", "c"]),
        (["A=good", "A=apart"], ["never evaluated at the same steps", "A=RUN B=RUN"]),
        (["broken"], ["broken/metrics.jsonl", "damaged in line 1"]),
        (["misconfigured"], ["misconfigured/config.json", "damaged"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_is_no_run_is_refused_in_one_line(make_run, read, tmp_path, arguments, fragments):
    make_run("good", FLAT)
    make_run("alien", FLAT, tasks=("a", "c"))
    make_run("apart", FLAT, steps=(1001, 2001))
    make_run("early", [], steps=())
    make_run("misconfigured", FLAT)
    (tmp_path / "misconfigured" / "config.json").write_text("{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metrics.jsonl").write_text('{"eval/succ\n{}\n')
    with pytest.raises(UserError) as refusal:
        read(*arguments)
    for fragment in fragments:
        assert fragment in str(refusal.value)
    assert "\n" not in str(refusal.value)
