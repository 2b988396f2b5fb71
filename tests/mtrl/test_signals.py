import ctypes
import os
import signal
import sys
import time

import pytest

from mtrl.signals import INSIST_AFTER, StopRequest

pytestmark = pytest.mark.usefixtures("signals_as_in_a_terminal")


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGHUP, 129)],
)
def test_the_first_signal_is_a_wish(number, exit_code):
    with StopRequest() as stop:
        assert not stop()
        assert stop.exit_code == 0
        send(number)
        assert stop()
        assert stop.exit_code == exit_code


def test_a_second_interrupt_is_immediate():
    with StopRequest() as stop:
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop()


class Destructor:
    def __del__(self):
        send(signal.SIGINT)


def _call_back():
    ctypes.CFUNCTYPE(None)(lambda: send(signal.SIGINT))()


@pytest.mark.parametrize("swallow", [Destructor, _call_back])
def test_an_interrupt_that_cannot_be_raised_where_it_comes_is_raised_later(swallow):
    """Python only tells of what is raised in a destructor, or in what a library calls back."""
    began = time.monotonic()
    with StopRequest() as stop:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it comes at some later line
            swallow()
            time.sleep(60)
        assert stop()
    assert time.monotonic() - began < 30


def test_of_several_interrupts_that_got_lost_one_is_raised():
    with StopRequest():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it comes at some later line
            Destructor()
            Destructor()
            time.sleep(60)
        Destructor()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)  # comes before the lost one is tried again
        time.sleep(4 * INSIST_AFTER)


def test_a_lost_interrupt_is_not_raised_after_the_end():
    before = signal.getsignal(signal.SIGALRM)
    with StopRequest():
        send(signal.SIGINT)
        Destructor()
    assert signal.getsignal(signal.SIGALRM) == before
    time.sleep(4 * INSIST_AFTER)


def test_whatever_else_cannot_be_raised_is_told_of_as_before(monkeypatch):
    class Failing:
        def __del__(self):
            raise ZeroDivisionError

    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    before = sys.unraisablehook
    with StopRequest() as stop:
        Failing()
        assert not stop()
    assert [one.exc_type for one in told] == [ZeroDivisionError]
    assert sys.unraisablehook == before


def test_a_second_termination_does_not_disturb_the_saving():
    with StopRequest() as stop:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert stop()


def test_handlers_are_put_back():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with StopRequest():
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_hang_up_that_is_ignored_stays_so(monkeypatch):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    try:
        with StopRequest() as stop:
            send(signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, previous)
