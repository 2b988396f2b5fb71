"""With the real wandb, and no network but a port where nobody answers."""

import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from mtrl.errors import UserError
from mtrl.wandb_logger import WandbLogger

linux = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="looks processes up in /proc"
)
NO_SERVER = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path_factory):
    """Hide the account and settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(home))
    monkeypatch.setenv("WANDB_BASE_URL", NO_SERVER)


@pytest.fixture(autouse=True)
def all_messages(caplog):
    caplog.set_level("INFO", logger="mtrl")


@pytest.fixture
def start(tmp_path):
    """Start a logger in `tmp_path`; it is closed after the test."""
    loggers = []

    def start(mode, *, resume=False):
        config = {"seed": 1, "path": tmp_path, "agent": {"width": 400}}
        loggers.append(WandbLogger(tmp_path, mode=mode, name="run", config=config, resume=resume))
        return loggers[-1]

    yield start
    for logger in loggers:
        logger.close(timeout=1.0)


def metrics(env_steps, **more):
    return {"progress/env_steps": env_steps, "progress/updates": 1, "time/seconds": 0.5, **more}


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def run_files(directory):
    return sorted(directory.glob("wandb/*run-*/*.wandb"))


def messages(caplog, level):
    return [record.message for record in caplog.records if record.levelname == level]


@pytest.mark.parametrize("mode", ["offline", "auto"])
def test_without_an_account_everything_is_kept_for_later(start, tmp_path, caplog, mode):
    logger = start(mode)
    for step in range(5):
        logger.log(metrics(step, **{f"marker/{step}": step}))
    logger.close()
    (path,) = run_files(tmp_path)
    assert path.parent.name.startswith("offline-run-")
    content = path.read_bytes()
    assert all(f"marker/{step}".encode() in content for step in range(5))
    assert messages(caplog, "WARNING") == []
    (hint,) = messages(caplog, "INFO")
    assert f"wandb sync {tmp_path}/wandb/*run-*" in hint
    assert (tmp_path / "wandb" / "helper.log").read_text() == ""
    assert not list(path.parent.rglob("*metadata*"))


def records(content):
    """Read a .wandb file as the program that uploads it does: every record has a checksum."""
    assert content.startswith(b":W&B")
    position, size = 7, 32768  # header, block
    while position < len(content):
        if size - position % size < 7:  # no room for another record's head
            position += size - position % size
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, position)
        data = content[position + 7 : position + 7 + length]
        assert len(data) == length
        assert zlib.crc32(data, zlib.crc32(bytes([kind]))) == checksum
        yield data
        position += 7 + length


def test_what_is_kept_can_be_read_by_what_uploads_it(start, tmp_path):
    logger = start("offline")
    for step in range(500):  # more than a block
        logger.log(metrics(step, **{f"marker/{step}": step}))
    logger.close()
    (path,) = run_files(tmp_path)
    content = b"".join(records(path.read_bytes()))
    assert all(f"marker/{step}".encode() in content for step in range(500))


def test_a_full_disk_of_its_own_reaches_nobody(start, tmp_path, caplog):
    directory = tmp_path / "wandb"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system to fill needs the right to mount one")
    try:
        logger = start("offline")
        slowest = 0.0
        for step in range(600):
            began = time.monotonic()
            logger.log(metrics(step, **{f"value/{k}": step + k / 7 for k in range(50)}))
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 0.5
        began = time.monotonic()
        logger.close()
        assert time.monotonic() - began < 20.0
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def test_both_sessions_of_a_resumed_run_belong_to_one_wandb_run(start, tmp_path):
    for resume in (False, True):
        logger = start("offline", resume=resume)
        logger.log(metrics(1))
        logger.close()
    run_id = (tmp_path / "wandb" / "run_id").read_text()
    assert [path.name for path in run_files(tmp_path)] == [f"run-{run_id}.wandb"] * 2


def test_an_unreachable_server_costs_a_warning_and_less_than_twenty_seconds(
    start, tmp_path, caplog, monkeypatch
):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    began = time.monotonic()
    logger = start("auto")
    logger.log(metrics(1, marker=1))
    assert time.monotonic() - began < 1.0
    logger.close()
    assert time.monotonic() - began < 20.0
    (warning,) = messages(caplog, "WARNING")
    assert "goes on offline" in warning
    (hint,) = messages(caplog, "INFO")
    assert "wandb sync" in hint
    assert any(b"marker" in path.read_bytes() for path in run_files(tmp_path))


@pytest.mark.parametrize("key", [None, "too-short"])
def test_online_without_a_usable_key_is_offline_with_a_warning(start, caplog, monkeypatch, key):
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    start("online").close()
    (warning,) = messages(caplog, "WARNING")
    assert "API key" in warning
    assert "wandb sync" in messages(caplog, "INFO")[0]


@linux
@pytest.mark.parametrize("victim", ["helper", "service"])
def test_a_killed_process_is_reported_once_and_logging_goes_on(start, tmp_path, caplog, victim):
    logger = start("offline")
    wait_until(lambda: run_files(tmp_path))
    helper = logger._process.pid
    (service,) = map(int, Path(f"/proc/{helper}/task/{helper}/children").read_text().split())
    os.kill({"helper": helper, "service": service}[victim], signal.SIGKILL)
    logger.log(metrics(1))
    wait_until(lambda: messages(caplog, "WARNING"))
    for step in range(3000):
        logger.log(metrics(step))
    began = time.monotonic()
    logger.close()
    assert time.monotonic() - began < 5.0
    (warning,) = messages(caplog, "WARNING")
    assert "wandb stopped" in warning
    wait_until(lambda: not Path(f"/proc/{service}").exists())


def test_a_process_that_hangs_never_blocks_logging_and_is_given_up(start, caplog):
    logger = start("offline")
    os.kill(logger._process.pid, signal.SIGSTOP)
    slowest = 0.0
    for step in range(3000):
        began = time.monotonic()
        logger.log(metrics(step, **{f"value/{k}": k for k in range(50)}))
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 0.5
    (warning,) = messages(caplog, "WARNING")
    assert "misses lines" in warning
    began = time.monotonic()
    logger.close(timeout=0.5)
    assert time.monotonic() - began < 3.0
    logger.close()


SCRIPT = """
import os, sys, time
from pathlib import Path
from mtrl.wandb_logger import WandbLogger
logger = WandbLogger(Path(sys.argv[1]), mode=sys.argv[2], name="run", config={}, resume=False)
logger.log({"progress/env_steps": 1, "marker": 1.0})
assert "wandb" not in sys.modules
if sys.argv[3] == "exit":
    time.sleep(0.5)  # the line reaches the pipe
if sys.argv[3] == "wait":
    time.sleep(0.5)
    print(logger._process.pid, flush=True)
    time.sleep(60)
if sys.argv[3] == "close":
    logger.close()
"""


def test_an_exit_without_close_does_not_hang(tmp_path):
    subprocess.run([sys.executable, "-c", SCRIPT, tmp_path, "offline", "exit"], timeout=15)
    wait_until(lambda: any(b"marker" in path.read_bytes() for path in run_files(tmp_path)))


@linux
def test_a_killed_training_leaves_a_finished_run_and_no_process(tmp_path):
    command = [sys.executable, "-c", SCRIPT, tmp_path, "offline", "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as training:
        helper = int(training.stdout.readline())
        training.kill()
    wait_until(lambda: not Path(f"/proc/{helper}").exists())
    (path,) = run_files(tmp_path)
    assert b"marker" in path.read_bytes()


def test_a_terminal_is_not_asked_and_sees_only_our_messages(tmp_path):
    terminal, end = pty.openpty()
    command = [sys.executable, "-c", SCRIPT, tmp_path, "online", "close"]
    process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, start_new_session=True)
    os.close(end)
    assert process.wait(timeout=20) == 0
    output = os.read(terminal, 10_000).decode()
    os.close(terminal)
    assert output.splitlines() == [
        "wandb goes on offline: No API key configured. Use `wandb login` to log in. "
        "(--wandb offline does not try)"
    ]


def test_disabled_starts_and_writes_nothing(start, tmp_path):
    logger = start("disabled")
    logger.log(metrics(1))
    logger.close()
    assert logger._process is None
    assert list(tmp_path.iterdir()) == []


def test_the_environment_decides_for_auto_only(start, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    start("auto").close()
    assert list(tmp_path.iterdir()) == []
    assert start("offline")._process is not None
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(UserError, match=r"`WANDB_MODE` is 'sometimes'"):
        start("auto")


def test_a_directory_that_cannot_be_made_is_a_warning(start, tmp_path, caplog):
    (tmp_path / "wandb").write_text("in the way")
    logger = start("offline")
    logger.log(metrics(1))
    logger.close()
    (warning,) = messages(caplog, "WARNING")
    assert "wandb did not start" in warning


def test_a_wandb_that_cannot_be_imported_is_a_warning(start, tmp_path, caplog, monkeypatch):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "wandb.py").write_text("raise ImportError('half\\ninstalled')")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    logger = start("offline")
    wait_until(lambda: messages(caplog, "WARNING"))
    logger.log(metrics(1))
    logger.close()
    (warning,) = messages(caplog, "WARNING")
    assert "ImportError: half installed" in warning
    assert messages(caplog, "INFO") == []
