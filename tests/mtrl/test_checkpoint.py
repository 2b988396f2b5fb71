"""Checkpoints: what goes in comes out, damage is found, and a crash costs nothing."""

import json
import logging
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from mtrl.checkpoint import (
    CheckpointError,
    generator_state,
    load_best,
    load_checkpoint,
    load_latest,
    save_checkpoint,
    set_generator_state,
)
from mtrl.errors import UserError
from mtrl.manifest import VERSION, Label, write_manifest
from mtrl.seal import seal

FILES = ["tensors.safetensors", "state.json", "manifest.json"]


def small_state(value: float = 1.0) -> dict[str, object]:
    return {
        "agent": {"weight": torch.full((3, 2), value), "updates": 7},
        "replay": {"rewards": np.arange(5.0)},
    }


def assert_holds(actual: dict[str, dict[str, object]], expected: dict[str, object]) -> None:
    """Equality of small states; `test_state_tree` is about the finer points."""
    assert actual.keys() == expected.keys()
    assert torch.equal(actual["agent"]["weight"], expected["agent"]["weight"])
    assert actual["agent"]["updates"] == expected["agent"]["updates"]
    if "replay" in expected:
        np.testing.assert_array_equal(actual["replay"]["rewards"], expected["replay"]["rewards"])


def run(script: str, *arguments: object) -> str:
    """Run a script in a process of its own; what it prints."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def rewrite_manifest(path: Path, **changes: object) -> None:
    """Change a manifest and seal it again, as only a program could."""
    file = path / "manifest.json"
    manifest = {**json.loads(file.read_text()), **changes}
    del manifest["sha256"]
    file.write_text(json.dumps(seal(manifest)))


def test_writing_into_a_loaded_state_leaves_the_file_alone(tmp_path):
    path = save_checkpoint(tmp_path, small_state(), env_steps=0)
    loaded = load_checkpoint(path).state
    loaded["agent"]["weight"].zero_()
    loaded["replay"]["rewards"][:] = 0
    assert_holds(load_checkpoint(path).state, small_state())


def test_only_reads_the_sections_asked_for(tmp_path):
    path = save_checkpoint(tmp_path, small_state(), env_steps=0)
    assert_holds(load_checkpoint(path, only=("agent",)).state, {"agent": small_state()["agent"]})
    with pytest.raises(CheckpointError, match="no section optimizer"):
        load_checkpoint(path, only=("agent", "optimizer"))


@pytest.mark.parametrize(
    "arguments",
    [{"env_steps": -1}, {"env_steps": 0, "keep_last": 0}, {"env_steps": 0, "keep_best": -1}],
)
def test_senseless_arguments_are_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match="at least"):
        save_checkpoint(tmp_path, small_state(), **arguments)


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found(tmp_path, name):
    path = save_checkpoint(tmp_path, small_state(), env_steps=1)
    file = path / name
    content = file.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(path)


@pytest.mark.parametrize("name", FILES)
def test_truncated_and_missing_files_are_found(tmp_path, name):
    path = save_checkpoint(tmp_path, small_state(), env_steps=1)
    file = path / name
    content = file.read_bytes()
    for length in (len(content) - 2, len(content) // 2, 0):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(path)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{name}.*missing"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "sub/x", "more.bin"])
def test_a_manifest_cannot_name_other_files(tmp_path, name):
    path = save_checkpoint(tmp_path, small_state(), env_steps=1)
    files = json.loads((path / "manifest.json").read_text())["files"]
    rewrite_manifest(path, files={**files, name: files["state.json"]})
    with pytest.raises(CheckpointError, match="nothing else"):
        load_checkpoint(path)


@pytest.mark.parametrize(("version", "which"), [(VERSION + 1, "newer"), (VERSION - 1, "older")])
def test_another_format_asks_for_another_program(tmp_path, version, which):
    path = save_checkpoint(tmp_path, small_state(), env_steps=1)
    rewrite_manifest(path, version=version, files="whatever was there")
    with pytest.raises(CheckpointError, match=rf"version {version}.*{which} mtrl"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "changes",
    [
        *({"env_steps": "1"}, {"env_steps": -1}, {"env_steps": True}, {"version": 0}),
        *({"version": "2"}, {"files": []}, {"run": None}, {"score": "1"}),
    ],
)
def test_a_malformed_manifest_is_refused(tmp_path, changes):
    path = save_checkpoint(tmp_path, small_state(), env_steps=1)
    rewrite_manifest(path, **changes)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "structure",
    [
        [],
        {"dict": 1},
        {"dict": {"a": {"pickle": "x"}}},
        {"dict": {"a": {"tensor": "elsewhere"}}},
    ],
)
def test_a_structure_of_another_kind_is_refused(tmp_path, structure):
    path = save_checkpoint(tmp_path, {"a": torch.ones(1)}, env_steps=1)
    (path / "state.json").write_text(json.dumps(structure))
    write_manifest(path, FILES[:2], Label(1))
    for only in (None, ("a",)):
        with pytest.raises(CheckpointError, match=str(path)):
            load_checkpoint(path, only=only)


@pytest.mark.parametrize("content", ["[" * 100_000, " " * (2 << 20), "[]", "{}", "\xff"])
def test_a_hostile_manifest_is_refused(tmp_path, content):
    path = save_checkpoint(tmp_path, small_state(), env_steps=1)
    (path / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load_checkpoint(path)


def test_an_endless_file_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, small_state(), env_steps=1)
    (path / "manifest.json").unlink()
    (path / "manifest.json").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", FILES)
def test_links_are_not_followed(tmp_path, name):
    path = save_checkpoint(tmp_path / "here", small_state(), env_steps=1, keep_last=1)
    file = (path / name).rename(tmp_path / name)
    (path / name).symlink_to(file)
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(path)


def test_a_linked_checkpoint_is_not_followed(tmp_path):
    elsewhere = save_checkpoint(tmp_path / "elsewhere", small_state(), env_steps=2)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "step_000000000002").symlink_to(elsewhere)
    with pytest.raises(UserError, match="symbolic link"):
        load_latest(tmp_path / "here")
    for _ in range(2):
        save_checkpoint(tmp_path / "here", small_state(), env_steps=1, keep_last=1)
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["step_000000000001"]
    load_checkpoint(elsewhere)


def test_another_runs_checkpoint_is_skipped_and_named(tmp_path, caplog):
    save_checkpoint(tmp_path, small_state(1.0), env_steps=1, run="mine")
    save_checkpoint(tmp_path, small_state(2.0), env_steps=2, run="theirs")
    assert load_latest(tmp_path, run="mine").label.env_steps == 1
    assert "step_000000000002` belongs to another run" in caplog.text
    assert load_latest(tmp_path).label.env_steps == 2


def test_where_all_checkpoints_are_of_another_run_the_configuration_is_suspected(tmp_path):
    for env_steps in (1, 2):
        save_checkpoint(tmp_path, small_state(1.0), env_steps=env_steps, run="mine")
    with pytest.raises(UserError, match=r"config\.json to another: put back"):
        load_latest(tmp_path, run="theirs")
    save_checkpoint(tmp_path, small_state(1.0), env_steps=3, run="a third one's")
    with pytest.raises(UserError, match="no usable checkpoint"):
        load_latest(tmp_path, run="theirs")


def test_a_tensor_named_twice_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, {"a": torch.ones(1), "b": torch.ones(1)}, env_steps=1)
    structure = {"dict": {name: {"tensor": "a"} for name in "ab"}}
    (path / "state.json").write_text(json.dumps(structure))
    write_manifest(path, FILES[:2], Label(1))
    with pytest.raises(CheckpointError, match="'a'"):
        load_checkpoint(path)


def test_the_best_checkpoints_stay_beside_the_newest(tmp_path):
    scores = {1: 0.2, 2: 0.7, 3: None, 4: 0.7, 5: 0.1, 6: None}
    for step, score in scores.items():
        save_checkpoint(tmp_path, small_state(), env_steps=step, score=score)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step_{s:012d}" for s in (4, 5, 6)]
    save_checkpoint(tmp_path, small_state(), env_steps=7, score=0.9, keep_best=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step_{s:012d}" for s in (6, 7)]


def test_the_best_is_the_newest_good_one_of_the_highest_score(tmp_path, caplog):
    for step, score in {1: 0.2, 2: 0.7, 3: 0.7, 4: 0.1, 5: None}.items():
        save_checkpoint(tmp_path, small_state(step), env_steps=step, score=score, keep_last=9)
    assert_holds(load_best(tmp_path).state, small_state(3))
    (tmp_path / "step_000000000003" / "tensors.safetensors").write_bytes(b"")
    with caplog.at_level(logging.WARNING, logger="mtrl"):
        assert load_best(tmp_path, only=["agent"]).label.env_steps == 2
    assert "step_000000000003" in caplog.text


def test_where_no_agent_was_evaluated_none_is_best(tmp_path):
    with pytest.raises(UserError, match="there is none"):
        load_best(tmp_path)
    save_checkpoint(tmp_path, small_state(), env_steps=1)
    with pytest.raises(UserError, match="leave out `--best`"):
        load_best(tmp_path)


def test_the_newest_checkpoints_stay(tmp_path):
    for step in (5, 10, 15, 20):
        save_checkpoint(tmp_path, small_state(step), env_steps=step, keep_last=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step_{s:012d}" for s in (10, 15, 20)]
    assert load_latest(tmp_path).label.env_steps == 20


def test_the_same_step_again_replaces_the_checkpoint(tmp_path):
    for value in (1.0, 2.0, 3.0):
        save_checkpoint(tmp_path, small_state(value), env_steps=4)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000000000004"]
    assert_holds(load_latest(tmp_path).state, small_state(3.0))


def test_a_kill_between_the_renames_of_a_replacement_loses_nothing(tmp_path):
    path = save_checkpoint(tmp_path, small_state(1.0), env_steps=4)
    path.rename(f"{path}.old")
    assert_holds(load_latest(tmp_path).state, small_state(1.0))
    save_checkpoint(tmp_path, small_state(2.0), env_steps=4)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000000000004"]
    assert_holds(load_latest(tmp_path).state, small_state(2.0))


def test_leftovers_of_killed_saves_are_cleaned(tmp_path):
    leftover = tmp_path / ".incomplete_step_000000000001"
    leftover.mkdir()
    (leftover / "tensors.safetensors").write_bytes(b"half")
    save_checkpoint(tmp_path, small_state(), env_steps=2)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000000000002"]


def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path, caplog):
    save_checkpoint(tmp_path, small_state(1.0), env_steps=1)
    newest = save_checkpoint(tmp_path, small_state(2.0), env_steps=2)
    (newest / "tensors.safetensors").write_bytes(b"")
    with caplog.at_level(logging.WARNING, logger="mtrl"):
        loaded = load_latest(tmp_path)
    assert_holds(loaded.state, small_state(1.0))
    (record,) = caplog.records
    assert str(newest / "tensors.safetensors") in record.getMessage()


def test_saving_behind_a_damaged_later_one_keeps_what_is_good(tmp_path):
    for step in (1, 9):
        save_checkpoint(tmp_path, small_state(), env_steps=step)
    (tmp_path / "step_000000000009" / "state.json").unlink()
    save_checkpoint(tmp_path, small_state(), env_steps=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step_{s:012d}" for s in (1, 3)]


@pytest.mark.parametrize("exists", [False, True])
def test_nothing_to_load_is_the_users_to_mend(tmp_path, exists):
    directory = tmp_path / "checkpoints"
    if exists:
        shutil.rmtree(save_checkpoint(directory, small_state(), env_steps=1))
    with pytest.raises(UserError, match=r"there is none.*another directory"):
        load_latest(directory)


def test_only_damaged_ones_are_all_named(tmp_path):
    for step in (1, 2):
        (save_checkpoint(tmp_path, small_state(), env_steps=step) / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"step_000000000002.*step_000000000001.*a good one"):
        load_latest(tmp_path)


def test_a_place_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "checkpoints", small_state(), env_steps=1)


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    save_checkpoint(tmp_path, small_state(), env_steps=1)
    # A limit on file sizes fails writes as a full disk does, without needing one.
    printed = run(
        """
        import pathlib, resource, sys, torch
        from mtrl.checkpoint import CheckpointError, save_checkpoint
        for limit, numbers in ((1 << 20, 1 << 20), (300, 1)):  # fails in tensors, in state.json
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            state = {"a": torch.zeros(numbers), "b": "x" * 300}
            try:
                save_checkpoint(pathlib.Path(sys.argv[1]), state, env_steps=2)
            except CheckpointError as error:
                print(error)
        """,
        tmp_path,
    )
    assert printed.count("cannot be written") == 2
    assert printed.count("File too large") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["step_000000000001"]
    assert_holds(load_latest(tmp_path).state, small_state())


def test_a_kill_at_any_moment_of_saving_leaves_a_good_checkpoint(tmp_path):
    # The child saves without pause, every step twice so that replacement is hit as well. It is
    # forked from a process that has torch loaded: five imports would take longer than the test.
    printed = run(
        """
        import itertools, json, os, pathlib, random, signal, sys, time, torch
        from mtrl.checkpoint import load_latest, save_checkpoint

        torch.set_num_threads(1)
        directory = pathlib.Path(sys.argv[1])
        state = {"replay": torch.zeros(6_000_000), "count": 0}

        def save(count):
            state["replay"].fill_(count)
            state["count"] = count
            save_checkpoint(directory, state, env_steps=count // 2)

        count, delays = 1, random.Random(0)
        save(count)
        for _ in range(5):
            child = os.fork()
            if child == 0:
                for count in itertools.count(count + 1):
                    save(count)
            time.sleep(delays.uniform(0.05, 0.5))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            interrupted = any(directory.glob(".incomplete_*"))
            loaded = load_latest(directory)
            uniform = bool((loaded.state["replay"] == loaded.state["count"]).all())
            matches = loaded.label.env_steps == loaded.state["count"] // 2
            print(json.dumps([interrupted, uniform, matches, loaded.state["count"] >= count]))
            count = loaded.state["count"]
        """,
        tmp_path,
    )
    outcomes = [json.loads(line) for line in printed.splitlines()]
    assert len(outcomes) == 5
    assert any(interrupted for interrupted, *_ in outcomes), "no kill fell into a save"
    assert all(all(rest) for _, *rest in outcomes)


@pytest.mark.parametrize("name", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_numpy_generators_continue_exactly(tmp_path, name):
    generator = np.random.Generator(getattr(np.random, name)(1))
    generator.integers(0, 10, size=3, dtype=np.uint32)  # leaves half a draw in some
    state = json.loads(json.dumps(generator_state(generator)))
    path = save_checkpoint(tmp_path, {"generator": state}, env_steps=0)
    expected = generator.random(5)
    other = np.random.Generator(getattr(np.random, name)(2))
    set_generator_state(other, load_checkpoint(path).state["generator"])
    np.testing.assert_array_equal(other.random(5), expected)


def test_torch_generators_continue_exactly(tmp_path):
    generator = torch.Generator().manual_seed(1)
    torch.rand(3, generator=generator)
    path = save_checkpoint(tmp_path, {"generator": generator.get_state()}, env_steps=0)
    expected = torch.rand(5, generator=generator)
    other = torch.Generator()
    other.set_state(load_checkpoint(path).state["generator"])
    assert torch.equal(torch.rand(5, generator=other), expected)
