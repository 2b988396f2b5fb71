"""Run directories: never overwritten, never shared, and resumed only as what they are."""

import datetime
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from mtrl.errors import UserError
from mtrl.run_directory import RunDirectory, read_config

CONFIG = {
    "seed": 1,
    "total_steps": 100,
    "agent": {"widths": (400, 400)},
    "logging": {"wandb": "auto"},
}
STORED = {**CONFIG, "agent": {"widths": [400, 400]}}


@pytest.fixture
def finished(tmp_path):
    """The directory of a run whose process has ended."""
    with RunDirectory.create(tmp_path / "run", CONFIG, default_name="x") as run:
        return run.path


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def test_a_new_run_states_what_it_is(tmp_path):
    with RunDirectory.create(tmp_path / "deep" / "run", CONFIG, default_name="x") as run:
        record = json.loads(run.config_path.read_text())
        assert record["config"] == run.config == STORED
        assert record["history"] == []
        installed = ("mtrl", "torch", "numpy", "gymnasium", "metaworld", "mujoco", "python")
        assert all(record["versions"][name] for name in (*installed, "numba", "llvmlite"))
        assert record["machine"]["system"]
        assert record["machine"]["cpu"]
        assert 1 <= record["machine"]["usable_cores"] <= record["machine"]["cores"]
        assert (record["machine"]["gpu"] is not None) is torch.cuda.is_available()
        paths = (run.metrics_path, run.checkpoints_path, run.summary_path, run.wandb_path)
        assert [p.name for p in paths] == ["metrics.jsonl", "checkpoints", "summary.json", "wandb"]
        assert {p.parent for p in paths} == {run.path}


def test_a_default_name_that_is_taken_gets_a_number(tmp_path):
    now = datetime.datetime.now()
    for second in range(10):  # whichever second the run starts in
        time = now + datetime.timedelta(seconds=second)
        (tmp_path / f"mt10_{time:%Y-%m-%d_%H-%M-%S}").mkdir()
    runs = [RunDirectory.create(None, CONFIG, root=tmp_path, default_name="mt10") for _ in range(2)]
    assert runs[0].path.name.endswith("_2")
    assert len({run.path for run in runs}) == 2
    for run in runs:
        run.close()


def test_a_default_name_says_what_and_when(tmp_path):
    root = tmp_path / "runs"
    with RunDirectory.create(None, CONFIG, root=root, default_name="mt10") as run:
        assert run.path.parent == root
        assert run.path.name.startswith(f"mt10_{datetime.datetime.now():%Y-%m-%d}")


def test_what_is_there_is_never_overwritten(tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(UserError, match=r"`--run-dir` .* not empty.*`--resume`"):
        RunDirectory.create(tmp_path, CONFIG, default_name="x")
    with pytest.raises(UserError, match="is not a directory"):
        RunDirectory.create(tmp_path / "note", CONFIG, default_name="x")
    assert [p.name for p in tmp_path.iterdir()] == ["note"]
    assert (tmp_path / "note").read_text() == "mine"


def test_an_empty_directory_may_be_used(tmp_path):
    with RunDirectory.create(tmp_path, CONFIG, default_name="x") as run:
        assert run.path == tmp_path


def test_what_a_run_killed_at_birth_left_may_be_used(tmp_path):
    (tmp_path / "lock").touch()
    (tmp_path / "lock.json").write_text("{}")
    with RunDirectory.create(tmp_path, CONFIG, default_name="x") as run:
        assert read_config(run.path) == STORED


@pytest.mark.parametrize("given", ["path", "root"])
@pytest.mark.parametrize("parent", ["/proc/1", "{tmp}/file"])
def test_an_unwritable_place_is_reported(tmp_path, parent, given):
    # Neither can be written even by root, whom permission bits do not stop.
    (tmp_path / "file").touch()
    place = tmp_path / parent.format(tmp=tmp_path) / "run"
    arguments = {"path": place} if given == "path" else {"path": None, "root": place}
    with pytest.raises(UserError, match=r"`--run-dir` .*run cannot be written .*may write to"):
        RunDirectory.create(config=CONFIG, default_name="x", **arguments)


def test_a_read_only_run_can_be_read_but_not_resumed(finished):
    # A directory in the lock's place refuses writing, as a read-only file system would.
    (finished / "lock").unlink()
    (finished / "lock").mkdir()
    assert RunDirectory.open_existing(finished).config == STORED
    with pytest.raises(UserError, match=r"`--run-dir` .* cannot be written"):
        RunDirectory.resume(finished, CONFIG)


def test_the_same_configuration_resumes(finished):
    before = (finished / "config.json").read_bytes()
    with RunDirectory.resume(finished, CONFIG) as run:
        assert run.config == STORED
    assert (finished / "config.json").read_bytes() == before


def go_on(path, config, **how):
    """Resume a run, and have what changed kept."""
    with RunDirectory.resume(path, config, **how) as run:
        run.keep_changes()
        run.keep_changes()


def test_a_change_is_stored_once_whoever_resumes_says_so(finished):
    before = (finished / "config.json").read_bytes()
    longer, allowed = {**CONFIG, "total_steps": 200}, frozenset({"total_steps"})
    with RunDirectory.resume(finished, longer, may_differ=allowed) as run:
        assert run.config["total_steps"] == 200
    assert (finished / "config.json").read_bytes() == before
    go_on(finished, longer, may_differ=allowed)
    assert read_config(finished)["total_steps"] == 200


def test_an_allowed_change_is_stored_with_its_history(finished, caplog):
    longer = {**CONFIG, "total_steps": 200, "logging": {"wandb": "disabled"}}
    allowed = frozenset({"total_steps", "logging.wandb"})
    with caplog.at_level(logging.INFO, logger="mtrl"):
        go_on(finished, longer, may_differ=allowed)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert any("`--total-steps`: 100 -> 200" in message for message in messages)
    assert any('`--wandb`: "auto" -> "disabled"' in message for message in messages)
    longest = {**longer, "total_steps": 300}
    go_on(finished, longest, may_differ=allowed)
    record = json.loads((finished / "config.json").read_text())
    assert record["config"]["total_steps"] == 300
    assert [old["config"]["total_steps"] for old in record["history"]] == [100, 200]
    assert all("history" not in old and old["versions"] for old in record["history"])
    with RunDirectory.resume(finished, longest) as run:
        assert [old["total_steps"] for old in run.earlier] == [100, 200, 300]


def test_another_configuration_is_refused(finished):
    before = (finished / "config.json").read_bytes()
    other = {**CONFIG, "seed": 2, "agent": {"widths": (400,), "depth": 3}, "total_steps": 200}
    del other["logging"]
    with pytest.raises(UserError) as caught:
        RunDirectory.resume(finished, other, may_differ=frozenset({"total_steps"}))
    message = str(caught.value)
    assert "`--seed`: 1 -> 2" in message
    assert "`--widths`: [400, 400] -> [400]" in message
    assert "`--depth`: absent -> 3" in message
    assert '`--wandb`: "auto" -> absent' in message
    assert "total-steps" not in message
    assert "\n" not in message
    assert (finished / "config.json").read_bytes() == before
    RunDirectory.resume(finished, CONFIG).close()  # the refusal has let go of the lock


def test_what_a_later_version_added_counts_as_its_default(finished):
    later = {**CONFIG, "preset": "default", "agent": {**CONFIG["agent"], "n_steps": 1}}
    defaults = {"preset": "default", "agent": {"widths": (1,), "n_steps": 1}, "seed": 7}
    other = {**later, "preset": "fast"}
    with pytest.raises(
        UserError, match=r'other settings \(stored -> given\): `--preset`: "default"'
    ):
        RunDirectory.resume(finished, other, defaults=defaults)
    go_on(finished, later, defaults=defaults)
    assert read_config(finished)["agent"] == {"widths": [400, 400], "n_steps": 1}


def test_a_refusal_names_every_difference(tmp_path):
    RunDirectory.create(tmp_path, {f"key_{i}": 0 for i in range(9)}, default_name="x").close()
    with pytest.raises(UserError) as caught:
        RunDirectory.resume(tmp_path, {f"key_{i}": 1 for i in range(9)})
    assert all(f"`--key-{i}`: 0 -> 1" in str(caught.value) for i in range(9))


@pytest.mark.parametrize(
    "open_run", [lambda path: RunDirectory.resume(path, CONFIG), RunDirectory.open_existing]
)
def test_what_is_not_a_run_is_refused_and_left_alone(tmp_path, open_run):
    with pytest.raises(UserError, match="missing does not exist"):
        open_run(tmp_path / "missing")
    with pytest.raises(UserError, match=r"has no config\.json"):
        open_run(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b"", b'{"config": {"seed"', b"[]", b"{}", b'{"config": 1}', b"\xff", b"[" * 100_000]
)
def test_a_damaged_configuration_is_refused(finished, content):
    (finished / "config.json").write_bytes(content)
    for open_run in (lambda: RunDirectory.resume(finished, CONFIG), lambda: read_config(finished)):
        with pytest.raises(UserError, match=r"config\.json is damaged"):
            open_run()
    assert (finished / "config.json").read_bytes() == content


LINKED = ("config.json", "metrics.jsonl", "checkpoints", "faults", "lock", "wandb")


@pytest.mark.parametrize("name", [*LINKED, "wandb/helper.log", "wandb/run_id"])
@pytest.mark.parametrize("exists", [True, False])
def test_links_out_of_the_directory_are_not_followed(finished, tmp_path, name, exists):
    outside = tmp_path / "outside"
    (finished / "wandb").mkdir()
    if (finished / name).is_dir():
        (finished / name).rmdir()
    if (finished / name).exists():
        (finished / name).rename(outside)
    if not exists:
        outside.unlink(missing_ok=True)
    (finished / name).symlink_to(outside)
    before = set(tmp_path.rglob("*"))
    for open_run in (lambda: RunDirectory.resume(finished, CONFIG), lambda: read_config(finished)):
        with pytest.raises(UserError, match=f"/{name} is a symbolic link"):
            open_run()
    assert set(tmp_path.rglob("*")) == before


def test_a_new_run_does_not_follow_a_link_of_one_killed_at_birth(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(outside)
    with pytest.raises(UserError, match="/lock is a symbolic link"):
        RunDirectory.create(tmp_path / "run", CONFIG, default_name="x")
    assert outside.read_text() == "precious"


def test_the_directory_itself_may_be_a_link(finished, tmp_path):
    (tmp_path / "link").symlink_to(finished)
    with RunDirectory.resume(tmp_path / "link", CONFIG) as run:
        assert run.config == STORED
        assert run.fault() is None


def test_what_becomes_a_link_meanwhile_is_a_fault(finished, tmp_path):
    with RunDirectory.resume(finished, CONFIG) as run:
        run.checkpoints_path.symlink_to(tmp_path)
        assert run.fault() == "checkpoints in it has become a symbolic link"


def test_each_flipped_bit_of_the_configuration_is_found(finished):
    file = finished / "config.json"
    content = file.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"config\.json (is damaged|was changed or is damaged)"):
            read_config(finished)


def test_an_edited_configuration_is_refused_and_says_where_options_go(finished):
    file = finished / "config.json"
    text = file.read_text()
    file.write_text(text.replace('"total_steps": 100', '"total_steps": 120'))
    for open_run in (lambda: RunDirectory.resume(finished, CONFIG), lambda: read_config(finished)):
        with pytest.raises(UserError, match=r"config\.json was changed .* beside `--resume`"):
            open_run()
    file.write_text(json.dumps(json.loads(text)))  # spelled otherwise, it says the same
    assert read_config(finished) == STORED


def test_one_process_at_a_time_and_a_killed_one_lets_go(tmp_path):
    path = tmp_path / "run"
    script = """
        import json, pathlib, sys
        from mtrl.run_directory import RunDirectory
        path, config = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
        run = RunDirectory.create(path, config, default_name="x")
        print("ready", flush=True)
        sys.stdin.read()
        """
    with start(script, path, json.dumps(CONFIG)) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(
            UserError, match=f"in use by pid {other.pid} on {os.uname().nodename} since 2"
        ):
            RunDirectory.resume(path, CONFIG)
        assert RunDirectory.open_existing(path).config == STORED
        other.send_signal(signal.SIGKILL)
    assert json.loads((path / "lock.json").read_text())["pid"] == other.pid
    RunDirectory.resume(path, CONFIG).close()


def test_an_unreadable_owner_still_counts(tmp_path):
    with RunDirectory.create(tmp_path, CONFIG, default_name="x") as run:
        (run.path / "lock.json").write_text("{")
        with pytest.raises(UserError, match="in use by another process"):
            RunDirectory.resume(tmp_path, CONFIG)


def test_closing_twice_is_harmless(tmp_path):
    run = RunDirectory.create(tmp_path, CONFIG, default_name="x")
    run.close()
    with RunDirectory.resume(tmp_path, CONFIG):
        run.close()  # must not take the lock from its new holder
        with pytest.raises(UserError, match=f"in use by pid {os.getpid()}"):
            RunDirectory.resume(tmp_path, CONFIG)
