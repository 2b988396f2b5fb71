"""Stopping a run from outside without losing what it learned."""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType

# Schedulers announce with SIGUSR1 that time is up, a terminal with SIGHUP that it is gone.
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

INSIST_AFTER = 0.05
"""Seconds until an interrupt that got lost is tried again."""


class StopRequest:
    """Turns the first interrupt into a wish that the loop can ask for; the second is immediate.

    While this context is active, Ctrl-C (SIGINT), SIGTERM, SIGUSR1 and SIGHUP make calling it
    return True. A further Ctrl-C raises KeyboardInterrupt at once; where that comes to nothing, as
    in a destructor or in a function that a compiler calls back, again soon after. SIGHUP stays
    ignored where it was, as under nohup.

    Attributes:
        exit_code: 128 plus the signal's number, as shells report it, where SIGUSR1 counts as
            SIGTERM; 0 if there was none.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._lost = False  # an interrupt, not tried again yet

    def __call__(self) -> bool:
        """Tell whether somebody wants the run to stop."""
        return self.exit_code != 0

    def __enter__(self) -> StopRequest:
        self._previous = {
            number: signal.signal(number, self._handle)
            for number in (*_STOP_SIGNALS, signal.SIGALRM)
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._insist
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lost = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = self._previous_hook
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGALRM and not self._lost:
            return
        if self.exit_code and number in (signal.SIGINT, signal.SIGALRM):
            self._lost = False  # one is enough, and those that clean up shall not meet another
            raise KeyboardInterrupt
        self.exit_code = 128 + (signal.SIGTERM if number == signal.SIGUSR1 else number)

    def _insist(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Interrupt once more, if that is what was raised where nothing can be raised."""
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._lost = True
            signal.setitimer(signal.ITIMER_REAL, INSIST_AFTER)
        else:
            self._previous_hook(unraisable)
