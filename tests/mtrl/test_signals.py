import os
import signal

import pytest

from mtrl.signals import StopRequest

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
