"""Stopping a run from outside without losing what it learned."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

# Schedulers announce with SIGUSR1 that time is up, a terminal with SIGHUP that it is gone.
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopRequest:
    """Turns the first interrupt into a wish that the loop can ask for; the second is immediate.

    While this context is active, Ctrl-C (SIGINT), SIGTERM, SIGUSR1 and SIGHUP make calling it
    return True. A further Ctrl-C raises KeyboardInterrupt at once. SIGHUP stays ignored where it
    was, as under nohup.

    Attributes:
        exit_code: 128 plus the signal's number, as shells report it, where SIGUSR1 counts as
            SIGTERM; 0 if there was none.
    """

    def __init__(self) -> None:
        self.exit_code = 0

    def __call__(self) -> bool:
        """Tell whether somebody wants the run to stop."""
        return self.exit_code != 0

    def __enter__(self) -> StopRequest:
        self._previous = {
            number: signal.signal(number, self._handle)
            for number in _STOP_SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.exit_code and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.exit_code = 128 + (signal.SIGTERM if number == signal.SIGUSR1 else number)
