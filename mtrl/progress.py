"""Shows how a training is getting on: a live table on a terminal, plain lines elsewhere."""

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.logging import RichHandler
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_SAMPLE_SECONDS = 0.5
_WINDOW_SECONDS = 120.0  # long enough to even out an evaluation, short enough to follow a change
_FIRST_LINE_SECONDS = 10.0
_LINE_SECONDS = 30.0


def setup_console() -> Console:
    """Send mtrl's warnings to the standard error stream and return the console they appear on.

    A display on the same console is not torn by them. Without a terminal they are plain lines.
    """
    console = Console(stderr=True)
    handler: logging.Handler
    if _can_redraw(console):
        handler = RichHandler(console=console, show_path=False, show_time=False)
    else:
        handler = logging.StreamHandler(console.file)
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("mtrl")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return console


class ProgressDisplay:
    """Steps, rates, time left and the latest success rates, on a terminal or as plain lines.

    Rates, and the time left that follows from them, are those of the last two minutes of this
    session, so a resumed run's past does not distort them. Nor does what was before its first
    update: a warm-up is faster than what follows, and the first update may be compiled.

    Args:
        total_env_steps: Environment steps over all tasks at which the training ends.
        task_names: The tasks, in the order of the table's rows.
        console: Where to draw; the standard error stream by default.
    """

    def __init__(
        self,
        total_env_steps: int,
        task_names: Sequence[str],
        *,
        console: Console | None = None,
    ):
        self._total = total_env_steps
        self._tasks = tuple(task_names)
        self._latest: dict[str, float] = {}
        self._env_steps = 0
        self._updates = 0
        self._first_updates: int | None = None  # of this session
        self._learns = False
        self._start = time.monotonic()
        self._samples: deque[tuple[float, int, int]] = deque()  # time, env_steps, updates
        self._next_sample = -math.inf
        self._next_line = self._start + _FIRST_LINE_SECONDS
        self._last_line_at: int | None = None
        self._console = console or Console(stderr=True)
        self._live = (
            Live(console=self._console, get_renderable=self._render, refresh_per_second=1)
            if _can_redraw(self._console)
            else None
        )
        self._closed = False

    def advance_to(self, env_steps: int, updates: int) -> None:
        """Note the totals reached, a resumed run's earlier part included; takes about 1 µs."""
        if self._first_updates is None:
            self._first_updates = updates
        elif updates > self._first_updates and not self._learns:
            self._learns = True
            self._samples.clear()
            self._next_sample = -math.inf
            self._next_line = max(self._next_line, time.monotonic() + _FIRST_LINE_SECONDS / 2)
        self._env_steps = env_steps
        self._updates = updates
        now = time.monotonic()
        if now >= self._next_sample:
            self._sample(now)

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Take over the success rates and totals in `metrics`; an evaluation is shown at once."""
        success = {
            name: float(value)
            for name, value in metrics.items()
            if "/success_rate" in name and not math.isnan(value)
        }
        self._latest.update(success)
        evaluated = self._live is None and any(name.startswith("eval/") for name in success)
        if evaluated:
            self._next_line = math.inf  # it has a line of its own, below
        self.advance_to(
            int(metrics.get("progress/env_steps", self._env_steps)),
            int(metrics.get("progress/updates", self._updates)),
        )
        if evaluated:
            self._print_line()
            self._print(f"  success: {self._success_by_task()}")

    def close(self) -> None:
        """Draw the last state and give the terminal back. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._live is not None:
            with self._surviving_closed_output():
                self._live.stop()  # does nothing if it never started
        elif self._last_line_at != self._env_steps:
            self._print_line()

    def _sample(self, now: float) -> None:
        self._next_sample = now + _SAMPLE_SECONDS
        self._samples.append((now, self._env_steps, self._updates))
        while len(self._samples) > 2 and self._samples[1][0] < now - _WINDOW_SECONDS:
            self._samples.popleft()
        if self._live is not None:
            with self._surviving_closed_output():
                self._live.start()  # does nothing the second time
        elif now >= self._next_line:
            self._print_line()

    def _rates(self) -> tuple[float, float]:
        """Return environment steps and updates per second."""
        if not self._samples:
            return 0.0, 0.0
        start, steps, updates = self._samples[0]
        seconds = max(time.monotonic() - start, 1e-9)
        return (self._env_steps - steps) / seconds, (self._updates - updates) / seconds

    def _summary(self) -> tuple[str, str, str]:
        """Return what both forms of the display share: how far it is, how fast, how long."""
        steps_rate, updates_rate = self._rates()
        left = max(self._total - self._env_steps, 0)
        known = self._learns and steps_rate > 0
        seconds_left = left / steps_rate if known else math.inf if left else 0.0
        eta = "?" if math.isinf(seconds_left) else _clock(seconds_left)
        # The last step of all environments may lead beyond.
        done = min(self._env_steps / self._total, 1.0)
        return (
            f"{self._env_steps:,}/{self._total:,} steps ({done:.1%})",
            f"{steps_rate:,.0f} steps/s  {updates_rate:,.1f} updates/s",
            f"elapsed {_clock(time.monotonic() - self._start)}  ETA {eta}",
        )

    def _print_line(self) -> None:
        means = [
            f"{kind} success {_percent(mean)}"
            for kind, mean in (("eval", self._mean("eval")), ("train", self._mean("train")))
            if mean is not None
        ]
        self._print("  ".join([*self._summary(), *means]))
        self._next_line = time.monotonic() + _LINE_SECONDS
        self._last_line_at = self._env_steps

    def _print(self, line: str) -> None:
        with self._surviving_closed_output():
            self._console.print(Text(line), soft_wrap=True)

    @contextlib.contextmanager
    def _surviving_closed_output(self) -> Iterator[None]:
        """Fall silent when the terminal or the pipe is gone: no reason to end a long training."""
        try:
            yield
        except (OSError, SystemExit):  # rich answers a broken pipe with an exit
            self._console.quiet = True

    def _mean(self, kind: str) -> float | None:
        names = [f"{kind}/success_rate/{task}" for task in self._tasks]
        values = [self._latest[name] for name in names if name in self._latest]
        return sum(values) / len(values) if values else None

    def _success_by_task(self) -> str:
        values = ((task, self._latest.get(f"eval/success_rate/{task}")) for task in self._tasks)
        return "  ".join(f"{task} {_percent(value)}" for task, value in values)

    def _render(self) -> RenderableType:
        bar = ProgressBar(total=self._total, completed=min(self._env_steps, self._total), width=60)
        done, speed, clock = self._summary()
        lines = Text(f"{done}  {clock}"), Text(speed)
        return Group(*lines, Padding(bar, (0, 0, 1, 0)), self._success_table())

    def _success_table(self) -> Table:
        """Return one row a task, in as many columns side by side as the terminal's height asks."""
        rows = max(min(self._console.height - 7, len(self._tasks)), 1)
        columns = math.ceil(len(self._tasks) / rows)
        table = Table(box=None, pad_edge=False)
        for _ in range(columns):
            table.add_column("task", no_wrap=True)
            table.add_column("eval", justify="right")
            table.add_column("train", justify="right", style="dim")
        for row in range(rows):
            cells = []
            for task in self._tasks[row::rows]:
                cells.append(Text(task))
                for kind in ("eval", "train"):
                    cells.append(Text(_percent(self._latest.get(f"{kind}/success_rate/{task}"))))
            table.add_row(*cells)
        means = (Text(_percent(self._mean(kind))) for kind in ("eval", "train"))
        table.add_row(Text("mean", style="bold"), *means)
        return table


def _can_redraw(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.0%}"
