import io
import logging
import re
import time

import pytest
from rich.console import Console

from mtrl.progress import ProgressDisplay, setup_console

TASKS = ("reach-v3", "push-v3")


class Clock:
    """Stands in for the passing of time, so that minutes do not take minutes."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("mtrl.progress.time", clock)
    return clock


def plain_console():
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def terminal_console(height=24):
    return Console(file=io.StringIO(), force_terminal=True, width=120, height=height)


def train(display, clock, *, seconds, steps_per_second, start=0, updates_per_second=0):
    for second in range(seconds + 1):
        display.advance_to(start + second * steps_per_second, second * updates_per_second)
        clock.now += 1
    clock.now -= 1


def evaluation(env_steps, *rates):
    return {
        "progress/env_steps": env_steps,
        "progress/updates": 0,
        "eval/success_rate": sum(rates) / len(rates),
        **{f"eval/success_rate/{task}": rate for task, rate in zip(TASKS, rates, strict=True)},
    }


def test_plain_lines_come_in_the_first_minute_and_then_every_half_minute(clock):
    console = plain_console()
    display = ProgressDisplay(100_000, TASKS, console=console)
    train(display, clock, seconds=300, steps_per_second=100, updates_per_second=50)
    lines = console.file.getvalue().splitlines()
    elapsed = [int(re.search(r"elapsed 0:(\d\d):", line)[1]) for line in lines]
    assert elapsed[0] == 0
    assert 9 <= len(lines) <= 11
    assert "1,000/100,000 steps (1.0%)  100 steps/s  50.0 updates/s" in lines[0]
    assert "ETA 0:16:30" in lines[0]


def test_plain_lines_hold_no_control_characters_and_are_not_wrapped(clock):
    console = plain_console()
    display = ProgressDisplay(1000, TASKS, console=console)
    train(display, clock, seconds=40, steps_per_second=10)
    display.log(evaluation(400, 1.0, 0.5))
    display.close()
    text = console.file.getvalue()
    assert all(character.isprintable() for character in text.replace("\n", ""))
    assert max(len(line) for line in text.splitlines()) > 80


def test_each_evaluation_is_printed_at_once_with_every_task(clock):
    console = plain_console()
    display = ProgressDisplay(1000, TASKS, console=console)
    train(display, clock, seconds=5, steps_per_second=10)
    assert console.file.getvalue() == ""
    display.log(evaluation(50, 1.0, 0.5))
    summary, by_task = console.file.getvalue().splitlines()
    assert summary.startswith("50/1,000 steps")
    assert "eval success 75%" in summary
    assert by_task.split() == ["success:", "reach-v3", "100%", "push-v3", "50%"]


def test_an_evaluation_that_is_due_with_a_line_prints_one_line(clock):
    console = plain_console()
    display = ProgressDisplay(1000, TASKS, console=console)
    clock.now += 60
    display.log(evaluation(50, 1.0, 0.5))
    display.close()
    assert len(console.file.getvalue().splitlines()) == 2


def test_training_success_is_shown_and_missing_numbers_are_not(clock):
    console = plain_console()
    display = ProgressDisplay(1000, TASKS, console=console)
    display.log({"train/success_rate/reach-v3": 0.25, "train/success_rate/push-v3": float("nan")})
    display.close()
    (line,) = console.file.getvalue().splitlines()
    assert "train success 25%" in line
    assert "eval" not in line


def test_a_resumed_run_shows_the_rate_of_this_session(clock):
    console = plain_console()
    display = ProgressDisplay(2_000_000, TASKS, console=console)
    train(display, clock, seconds=20, steps_per_second=100, start=1_000_000, updates_per_second=5)
    (line,) = console.file.getvalue().splitlines()
    assert "1,001,000/2,000,000 steps (50.0%)  100 steps/s" in line
    assert "ETA 2:46:30" in line


def test_compiling_again_does_not_distort_the_time_left_of_a_resumed_run(clock):
    console = plain_console()
    display = ProgressDisplay(2_000_000, TASKS, console=console)
    display.advance_to(1_000_000, 5000)
    clock.now += 60
    for second in range(30):
        clock.now += 1
        display.advance_to(1_000_100 + second * 100, 5005 + second * 5)
    display.close()
    assert "  100 steps/s  5.0 updates/s" in console.file.getvalue().splitlines()[-1]


def test_the_time_left_follows_a_change_of_pace(clock):
    console = plain_console()
    display = ProgressDisplay(1_000_000, TASKS, console=console)
    train(display, clock, seconds=60, steps_per_second=5000)
    train(display, clock, seconds=130, steps_per_second=100, start=300_000)
    display.close()
    assert "  100 steps/s" in console.file.getvalue().splitlines()[-1]


def test_neither_the_warm_up_nor_a_first_update_that_is_compiled_distorts_the_time_left(clock):
    console = plain_console()
    display = ProgressDisplay(100_000, TASKS, console=console)
    train(display, clock, seconds=12, steps_per_second=5000)
    clock.now += 60  # so a line is due
    for second in range(1, 8):
        display.advance_to(60_000 + second * 100, second * 5)
        clock.now += 1
    before, after = console.file.getvalue().splitlines()
    assert before.endswith("ETA ?"), "the warm-up says nothing about that"
    assert "60,600/100,000 steps (60.6%)  100 steps/s  5.0 updates/s" in after
    assert after.endswith("ETA 0:06:34")


def test_all_of_the_budget_is_all_there_is(clock):
    console = plain_console()
    display = ProgressDisplay(100, TASKS, console=console)
    display.advance_to(112, 10)
    display.close()
    assert console.file.getvalue().startswith("112/100 steps (100.0%)")


def test_no_line_is_too_long_for_a_small_terminal(clock):
    display = ProgressDisplay(20_000_000, TASKS, console=terminal_console())
    train(display, clock, seconds=4000, steps_per_second=2222, updates_per_second=1111)
    clock.now += 10**6  # days, in which little happens
    console = terminal_console()
    console.print(display._render())
    lines = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue()).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80


def test_the_end_is_printed_once(clock):
    console = plain_console()
    display = ProgressDisplay(100, TASKS, console=console)
    display.advance_to(100, 10)
    display.close()
    display.close()
    (line,) = console.file.getvalue().splitlines()
    assert line.startswith("100/100 steps (100.0%)")


def test_a_terminal_gets_a_bar_and_a_table():
    console = terminal_console()
    display = ProgressDisplay(1000, TASKS, console=console)
    display.log(evaluation(500, 1.0, 0.5) | {"train/success_rate/push-v3": 0.125})
    display.close()
    drawn = console.file.getvalue()
    assert "\x1b[" in drawn
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn)
    assert "500/1,000 steps (50.0%)" in text
    assert re.search(r"reach-v3 +100% +-", text)
    assert re.search(r"push-v3 +50% +12%", text)
    assert re.search(r"mean +75% +12%", text)


def test_the_cursor_comes_back():
    console = terminal_console()
    display = ProgressDisplay(1000, TASKS, console=console)
    display.advance_to(1, 0)
    display.close()
    drawn = console.file.getvalue()
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")


def test_a_display_that_never_started_draws_nothing():
    console = terminal_console()
    ProgressDisplay(1000, TASKS, console=console).close()
    assert "\x1b[?25l" not in console.file.getvalue()


@pytest.mark.parametrize("num_tasks", [1, 10, 50])
def test_the_table_fits_the_terminal_and_shows_every_task(num_tasks):
    console = Console(file=io.StringIO(), force_terminal=True, width=200, height=24)
    tasks = [f"task-{k:02}-v3" for k in range(num_tasks)]
    display = ProgressDisplay(1000, tasks, console=console)
    console.print(display._render())
    lines = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue()).splitlines()
    assert len(lines) < 24
    assert lines[4].startswith("task")
    assert {name for name in tasks if any(name in line for line in lines)} == set(tasks)


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "Input/output error")])
def test_training_goes_on_when_the_output_is_gone(clock, error, tmp_path, monkeypatch):
    # Rich puts /dev/null in the place of a broken standard output, which here is pytest's.
    output = (tmp_path / "output").open("w")
    monkeypatch.setattr("sys.stdout", output)

    class Gone(io.StringIO):
        def write(self, text):
            raise error

    display = ProgressDisplay(1000, TASKS, console=Console(file=Gone(), force_terminal=False))
    display.log(evaluation(50, 1.0, 0.5))
    train(display, clock, seconds=100, steps_per_second=1)
    display.close()
    output.close()


def test_advancing_costs_microseconds():
    display = ProgressDisplay(10**9, TASKS, console=plain_console())
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for step in range(1000):
            display.advance_to(step, step)
        best = min(best, (time.perf_counter() - start) / 1000)
    assert best < 20e-6


@pytest.fixture
def own_logger():
    """Give setup_console a logger to change and put the old state back."""
    logger = logging.getLogger("mtrl")
    saved = logger.handlers[:], logger.level, logger.propagate
    yield logger
    logger.handlers[:], logger.level, logger.propagate = saved


def test_warnings_are_plain_unwrapped_lines_without_a_terminal(own_logger, capsys):
    for _ in range(2):
        setup_console()
    message = "[red]`x`[/red] " + "long " * 40
    own_logger.warning(message)
    own_logger.info("for your information")
    assert capsys.readouterr().err == f"WARNING: {message}\nINFO: for your information\n"


def test_warnings_appear_above_a_live_display(own_logger, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = setup_console()
    assert console.is_terminal
    display = ProgressDisplay(1000, TASKS, console=console)
    display.advance_to(1, 1)
    own_logger.warning("[red] disk is full")
    display.close()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    warning, after = text.index("[red] disk is full"), text.rindex("1/1,000 steps")
    assert warning < after


def test_rates_survive_steps_that_take_no_time(clock):
    display = ProgressDisplay(1000, TASKS, console=plain_console())
    for step in range(3):
        display.advance_to(step, 0)
    display.close()
