import logging

import pytest

from mtrl.logging import LoggerGroup

LINE = {"progress/env_steps": 1}


class Recorder:
    def __init__(self):
        self.lines = []
        self.closed = 0

    def log(self, metrics):
        self.lines.append(dict(metrics))

    def close(self):
        self.closed += 1


class Failing(Recorder):
    def log(self, metrics):
        super().log(metrics)
        raise RuntimeError("no more")

    def close(self):
        super().close()
        raise RuntimeError("never closes")


def test_a_group_logs_to_and_closes_each():
    loggers = [Recorder(), Recorder()]
    group = LoggerGroup(loggers)
    group.log(LINE)
    group.close()
    group.close()
    assert all(logger.lines == [LINE] and logger.closed == 1 for logger in loggers)


def test_one_failing_logger_is_named_once_and_left_out(caplog):
    first, failing, last = Recorder(), Failing(), Recorder()
    group = LoggerGroup([first, failing, last])
    for _ in range(3):
        group.log(LINE)
    group.close()
    assert len(first.lines) == len(last.lines) == 3
    assert len(failing.lines) == failing.closed == 1
    assert first.closed == last.closed == 1
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert [message for message in warnings if "switched off" in message] == [warnings[0]]
    assert "Failing" in warnings[0]
    assert "no more" in warnings[0]


def test_an_interrupt_is_not_swallowed():
    class Interrupted(Recorder):
        def log(self, metrics):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LoggerGroup([Interrupted()]).log(LINE)
