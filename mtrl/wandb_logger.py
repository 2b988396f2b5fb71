"""Sends metrics to wandb without ever waiting for it."""

import contextlib
import json
import logging
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from .errors import UserError

_messages = logging.getLogger("mtrl")

WandbMode = Literal["auto", "online", "offline", "disabled"]
_PROGRAM = Path(__file__).with_name("wandb_process.py")
_QUEUE_LINES = 1000  # the helper process needs seconds to start; logging does not wait for it


class WandbLogger:
    """Logs to a wandb run that lives in a helper process; no failure of wandb reaches the caller.

    `log` puts the metrics into a bounded queue that a daemon thread empties into the process's
    pipe. When the process dies or falls too far behind, metrics are dropped with one warning:
    `metrics.jsonl` is the source of truth. `wandb` is never imported by the calling process.

    A context manager: leaving it closes it, at once if the reason is a KeyboardInterrupt.

    Args:
        run_dir: The run's directory, which must exist; wandb's files go into `run_dir/wandb`, the
            helper's output into `run_dir/wandb/helper.log`.
        mode: `auto` obeys the environment variable `WANDB_MODE` if it is set, else it is online if
            wandb finds an API key (`WANDB_API_KEY`, `wandb login`) and offline otherwise. `online`
            falls back to offline when wandb cannot be reached within ten seconds. `disabled` does
            nothing at all. `WANDB_PROJECT` (default `mtrl`) and `WANDB_ENTITY` work as usual.
        name: The run's name on wandb.
        config: What to show as the run's configuration; what JSON lacks is shown as a string.
        resume: Whether to go on with the wandb run that `run_dir` belongs to.

    Raises:
        UserError: `WANDB_MODE` is none of wandb's modes.
    """

    def __init__(
        self, run_dir: Path, *, mode: WandbMode, name: str, config: Mapping[str, Any], resume: bool
    ):
        self._directory = run_dir / "wandb"
        self._queue: queue.Queue[dict[str, float] | None] = queue.Queue(_QUEUE_LINES)
        self._process: subprocess.Popen[bytes] | None = None
        self._offline: bool | None = None  # not known before the run has started
        self._finished = False
        self._failure: str | None = None
        self._closing = False
        self._warned = False
        mode = resolve_wandb_mode(mode)
        if mode == "disabled":
            return
        try:
            self._directory.mkdir(exist_ok=True)
            spec = {
                "dir": str(run_dir.resolve()),
                "id": _run_id(self._directory / "run_id"),
                "mode": mode,
                "name": name,
                "config": dict(config),
                "resume": resume,
            }
            first_line = json.dumps(spec, default=str)
            self._process = _start_process(self._directory / "helper.log")
        except OSError as error:
            _messages.warning("wandb did not start (%s): training goes on without it", error)
            return
        requests, events = self._process.stdin, self._process.stdout
        self._receiver = threading.Thread(target=self._receive, args=(events,), daemon=True)
        self._receiver.start()
        threading.Thread(target=self._send, args=(requests, first_line), daemon=True).start()

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Queue one line; takes microseconds."""
        if self._process is None or not self._receiver.is_alive():
            return
        try:
            self._queue.put_nowait({name: float(value) for name, value in metrics.items()})
        except queue.Full:
            if not self._warned:
                _messages.warning("wandb misses lines: it cannot keep up; metrics.jsonl has them")
            self._warned = True

    def close(self, timeout: float = 18.0) -> None:
        """Finish the wandb run, and give up `timeout` seconds from now. May be called twice.

        When something is not uploaded, the command that does so later is reported.
        """
        if self._process is None:
            return
        deadline = time.monotonic() + timeout
        self._closing = True
        try:
            if self._receiver.is_alive():  # otherwise nobody empties the queue
                self._queue.put(None, timeout=timeout)
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except (queue.Full, subprocess.TimeoutExpired):
            # The helper leads a group of its own, with whatever wandb has started.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._receiver.join(1.0)
        self._process = None
        self._report()

    def __enter__(self) -> "WandbLogger":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is KeyboardInterrupt:
            self.close(timeout=0.0)
        else:
            self.close()

    def _send(self, pipe: IO[bytes], first_line: str) -> None:
        """Write the queue to the process until `close`, or until the process is gone."""
        with pipe:
            try:
                _write_line(pipe.fileno(), first_line)
                while (metrics := self._queue.get()) is not None:
                    _write_line(pipe.fileno(), json.dumps(metrics))
                _write_line(pipe.fileno(), "null")
            except BrokenPipeError:
                return

    def _receive(self, pipe: IO[bytes]) -> None:
        """Act on the events of the process until it ends."""
        with pipe:
            for line in pipe:
                event = json.loads(line)
                if event["event"] == "started":
                    self._offline = event["offline"]
                elif event["event"] == "finished":
                    self._finished = True
                elif event["event"] == "warning":
                    reason = _one_line(event["reason"])
                    _messages.warning(
                        "wandb goes on offline: %s (--wandb offline does not try)", reason
                    )
                else:
                    self._failure = _one_line(event["reason"])
        if not self._finished and not self._closing:
            self._warn_of_failure("its process was killed")

    def _report(self) -> None:
        """Say how to upload what has not been uploaded."""
        if not self._finished:
            self._warn_of_failure("it took too long to finish")
        uploaded = self._finished and not self._offline
        if not uploaded and any(self._directory.glob("*run-*/*.wandb")):
            option = "" if self._offline else "--include-online "
            directory = shlex.quote(str(self._directory))
            _messages.info("upload to wandb with: wandb sync %s%s/*run-*", option, directory)

    def _warn_of_failure(self, default: str) -> None:
        if not self._warned:
            reason = self._failure or default
            _messages.warning("wandb stopped (%s); metrics.jsonl has everything", reason)
        self._warned = True


def resolve_wandb_mode(mode: WandbMode) -> WandbMode:
    """Let the environment variable `WANDB_MODE` decide what `auto` means, if it is set.

    Raises:
        UserError: `WANDB_MODE` is none of wandb's modes.
    """
    if mode != "auto":
        return mode
    modes: dict[str, WandbMode] = {
        "": "auto",
        "online": "online",
        "run": "online",
        "offline": "offline",
        "dryrun": "offline",
        "disabled": "disabled",
    }
    value = os.environ.get("WANDB_MODE", "")
    if value not in modes:
        raise UserError(f"`WANDB_MODE` is {value!r}: set it to online, offline or disabled")
    return modes[value]


def _run_id(path: Path) -> str:
    """Return the id that ties every session of a run to one wandb run; made up once."""
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12])
    return path.read_text().strip()


def _start_process(log_path: Path) -> "subprocess.Popen[bytes]":
    # Unless told otherwise, wandb sends usage statistics, offline too, and its exit waits for them.
    environment = {"WANDB_ERROR_REPORTING": "false", **os.environ}
    # A service that was started by another process belongs to it, and may be gone.
    environment.pop("WANDB_SERVICE", None)
    with log_path.open("ab") as output:
        return subprocess.Popen(
            # -P keeps this package's directory, whose logging.py is not Python's, off sys.path.
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=environment,
            bufsize=0,
            start_new_session=True,  # no terminal to prompt on, and Ctrl-C is for the training
        )


def _write_line(descriptor: int, line: str) -> None:
    data = line.encode() + b"\n"
    while data:
        data = data[os.write(descriptor, data) :]


def _one_line(text: str) -> str:
    return " ".join(text.split())
