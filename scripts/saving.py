"""Saving checkpoints of a run on storage that may fail."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import torch

from mtrl.checkpoint import CheckpointError, save_checkpoint
from mtrl.errors import RunError
from mtrl.guard import NonFiniteError, first_not_finite
from mtrl.logging import JsonlLogger, Mark
from mtrl.run_directory import RunDirectory
from mtrl.types import State

from .resuming import circumstances, settings

MAX_TRIES = 5
"""A run whose directory has gone, or may not be written, ends after so many saves in a row."""

_messages = logging.getLogger("mtrl")


class Saver:
    """Saves into a run's directory; what cannot be saved now is due again at the next log line.

    A full disk must not end a training: there may be space again before it ends. A directory that
    is gone rarely comes back, and nothing that is learned from then on would be kept.

    Args:
        run: Where to save.
        metrics: Whose lines must be on file before a checkpoint that would skip them on resuming.
        device: The agent's.
        compiles: Tells whether updates are compiled, by now.

    Attributes:
        failed: Whether the last save did.
    """

    def __init__(
        self,
        run: RunDirectory,
        metrics: JsonlLogger,
        device: torch.device,
        compiles: Callable[[], bool],
    ) -> None:
        self.failed = False
        self._run = run
        self._metrics = metrics
        self._device = device
        self._compiles = compiles
        self._tries = 0

    def __call__(self, state: State, env_steps: int) -> None:
        """Save a checkpoint, or say why not.

        Raises:
            RunError: The directory has been out of reach too often in a row.
        """
        if fault := self._run.fault():
            self._miss(fault)
            return
        self._tries = 0
        if name := first_not_finite(state["agent"], "agent/"):
            if not self.failed:
                _messages.warning("%s is not finite: no checkpoint is made of that", name)
            self.failed = True
            return
        try:
            save_checkpoint(
                self._run.checkpoints_path,
                # Lines first: those that a checkpoint is later than are not written again.
                {**state, **self._surroundings(self._metrics.flush())},
                env_steps=env_steps,
                run=self._run.id,
                score=state["progress"]["score"],
            )
        except (CheckpointError, OSError) as error:
            if not self.failed:
                _messages.warning("%s; training goes on, saving is tried again", error)
            self.failed = True
            return
        if self.failed:
            _messages.info("saved again: a checkpoint of %d steps", env_steps)
        self.failed = False

    def store_fault(self, fault: NonFiniteError, state: State) -> RunError:
        """Store the state that a fault happens in, apart from the checkpoints, and say where."""
        name = first_not_finite(state["agent"], "agent/")
        reason = f"{fault} ({name} is not finite)" if name else str(fault)
        with contextlib.suppress(OSError):  # lines that wait are no reason to store nothing
            self._metrics.flush()
        try:
            path = save_checkpoint(
                self._run.path / "faults",
                {**state, **self._surroundings(self._metrics.mark), "fault": reason},
                env_steps=state["progress"]["env_steps"],
                run=self._run.id,
            )
        except (CheckpointError, OSError) as error:
            return RunError(f"{reason}; what led to it could not be stored: {error}")
        return RunError(
            f"{reason}; the state it happens in is in {path}, and `--resume` goes on from the last "
            "good checkpoint"
        )

    def _surroundings(self, mark: Mark) -> State:
        return {
            "metrics": vars(mark),
            "circumstances": circumstances(self._run, self._device, self._compiles()),
            "settings": settings(self._run.config),
        }

    def _miss(self, fault: str) -> None:
        self.failed = True
        self._tries += 1
        if self._tries == MAX_TRIES:
            raise RunError(
                f"`--run-dir` {self._run.path}: {fault}, and {MAX_TRIES} saves in a row have "
                "failed: put it back or make it writable, then add `--resume`"
            )
        _messages.warning(
            "cannot save into %s: %s; try %d of %d",
            self._run.path,
            fault,
            self._tries,
            MAX_TRIES,
        )
