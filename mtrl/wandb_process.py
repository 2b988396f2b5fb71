"""The process that talks to wandb on behalf of `mtrl.wandb_logger`; it imports nothing of mtrl.

wandb installs exit hooks, starts a service and retries on the network for as long as it takes.
In a process of its own none of that can stop, slow or litter the training, and the last resort,
killing it, is always there.

Standard input carries JSON lines: first the run's description, then metrics, then `null`. The end
of the input, which is what a killed training leaves, means the same as `null`. Standard output
carries events: `{"event": "started", "offline": bool}`, `{"event": "finished"}`, and
`{"event": "warning" | "failed", "reason": str}`.
"""

import contextlib
import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import wandb

_STEP_KEY = "progress/env_steps"
_INIT_SECONDS = 10
_FINISH_SECONDS = 12  # for the upload of what is left; what is not uploaded can be synced later

_SETTINGS: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "disable_job_creation": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "init_timeout": _INIT_SECONDS,
    "finish_timeout": _FINISH_SECONDS,
    "finish_timeout_raises": True,
}


def start_run(spec: dict[str, Any], warn: Callable[[str], None]) -> "tuple[wandb.Run, bool]":
    """Start a wandb run, online if asked for and possible; also return whether it is offline.

    `auto` differs from `online` in that a missing API key is no reason to warn.
    """
    import wandb

    known = wandb.Settings.model_fields  # versions differ, and an unknown setting is an error
    settings = {name: value for name, value in _SETTINGS.items() if name in known}

    def init(mode: Any) -> "wandb.Run":
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mtrl"),
            dir=spec["dir"],
            id=spec["id"],
            name=spec["name"],
            config=spec["config"],
            resume="allow" if mode == "online" and spec["resume"] else None,
            mode=mode,
            settings=wandb.Settings(**settings),
        )
        run.define_metric(_STEP_KEY)
        run.define_metric("*", step_metric=_STEP_KEY)
        return run

    if spec["mode"] == "offline":
        return init("offline"), True
    try:
        return init("online"), False
    except wandb.errors.UsageError as error:  # what wandb says without a key and a terminal
        if spec["mode"] != "auto":
            warn(str(error))
    except Exception as error:
        warn(str(error))
        wandb.teardown()  # its service still holds the run's id
    return init("offline"), True


def serve(requests: TextIO, send: Callable[..., None]) -> None:
    """Log every line of `requests` to a wandb run until they end, and finish the run."""
    spec = json.loads(requests.readline())
    run, offline = start_run(spec, lambda reason: send(event="warning", reason=reason))
    send(event="started", offline=offline)
    for line in requests:
        metrics = json.loads(line)
        if metrics is None:
            break
        # With the environment's clock as wandb's step, lines that a resumed run repeats are
        # recognised and dropped.
        step = metrics.get(_STEP_KEY)
        run.log(metrics, step=None if step is None else int(step))
    faulthandler.dump_traceback_later(_FINISH_SECONDS + 3, exit=True)
    run.finish()
    send(event="finished")


def main() -> None:
    """Serve the process that started this one."""
    if hasattr(os, "nice"):
        os.nice(10)  # training first
    # wandb's own helper inherits descriptors 0 and 1. It gets stand-ins, so that the pipes end when
    # this process does, and nothing wandb prints gets between the events.
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    events = os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)

    def send(**event: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # a killed training still gets its run finished
            os.write(events, json.dumps(event).encode() + b"\n")

    try:
        serve(requests, send)
    except BaseException as error:
        traceback.print_exc()
        send(event="failed", reason=" ".join(traceback.format_exception_only(error)))
        sys.exit(1)


if __name__ == "__main__":
    main()
