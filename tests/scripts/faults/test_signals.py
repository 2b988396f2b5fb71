"""Signals save at the next boundary; Ctrl-C twice leaves at once."""

import os
import pty
import signal
import termios
import time

import pytest

pytestmark = pytest.mark.usefixtures("signals_as_in_a_terminal")

STOPPING = {
    signal.SIGINT: 130,
    signal.SIGTERM: 143,
    signal.SIGUSR1: 143,
    signal.SIGHUP: 129,
}
# So many updates follow each step that the next boundary is minutes away.
SLOW = ("--update-ratio", "100000")


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_a_signal_saves_at_the_next_boundary(
    start, run, endless, tmp_path, reached, checkpoints, read_metrics, assert_gapless, number
):
    script = start("train_mt10", *endless, "--checkpoint-every", 10**9)
    script.wait_until(lambda: reached() >= 160)
    assert checkpoints(tmp_path / "run") == []
    script.signal(number)
    result = script.wait()
    assert result.code == STOPPING[number]
    assert "Traceback" not in result.err
    assert "to go on: --resume" in result.err
    (saved,) = checkpoints(tmp_path / "run")
    assert saved >= reached()
    if number == signal.SIGTERM:
        more = ["--resume", "--total-steps", (saved // 80 + 2) * 80]
        assert run("train_mt10", *endless, *more).code == 0
        assert_gapless(read_metrics(tmp_path / "run"))


def test_interrupted_twice_it_leaves_at_once_and_restores_the_terminal(
    start, endless, tmp_path, checkpoints, snapshot
):
    path = tmp_path / "run"
    ours, its = pty.openpty()
    before = termios.tcgetattr(its)
    often = ["--warmup-steps", 160, "--checkpoint-every", 80, "--wandb", "offline"]
    script = start(
        "train_mt10", *endless, *often, *SLOW, terminal=its, environment={"TERM": "xterm"}
    )
    script.wait_until(lambda: 160 in checkpoints(path) and list(path.glob("wandb/*/*.wandb")))
    time.sleep(1)  # by then it is in the updates after a later step
    saved = snapshot(path / "checkpoints")
    script.signal(signal.SIGINT)
    time.sleep(0.5)  # it goes on to the boundary, which is far away
    began = time.monotonic()
    script.signal(signal.SIGINT)
    assert script.wait().code == 130
    assert time.monotonic() - began < 5
    assert snapshot(path / "checkpoints") == saved
    assert termios.tcgetattr(its) == before
    shown = b""
    os.set_blocking(ours, False)
    while part := _read(ours):
        shown += part
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l"), "the cursor stays hidden"
    assert b"Traceback" not in shown
    os.close(ours)
    os.close(its)


def _read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except BlockingIOError:
        return b""
