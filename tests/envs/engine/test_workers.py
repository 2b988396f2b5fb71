import functools
import subprocess
import sys
import threading
import time

import pytest

from envs.engine.simulation import split_rows
from envs.engine.workers import Workers

LIMIT = 60.0


def share(jobs):
    """Return a job that takes `jobs` in turn until none is left, with whoever else runs it."""
    order = iter(jobs)

    def take_all():
        for job in order:
            job()

    return take_all


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_a_job_runs_as_often_as_asked_whatever_the_number_of_threads(num_threads):
    workers = Workers(num_threads)
    for times in range(num_threads + 1):
        done = []
        workers.start(functools.partial(done.append, times), times)
        assert workers.wait(LIMIT) is None
        assert done == [times] * times
    workers.close()


def test_threads_run_a_job_side_by_side():
    workers = Workers(2)
    workers.start(threading.Barrier(2, timeout=5).wait, 2)  # passes only if both are in it at once
    assert workers.wait(LIMIT) is None
    workers.close()


def test_a_job_that_fails_is_told_and_the_threads_live_on():
    workers = Workers(2)

    def fail():
        raise ZeroDivisionError("in a job")

    done = []
    workers.start(share([lambda: None, fail, lambda: done.append(1)]), 2)
    assert str(workers.wait(LIMIT)) == "in a job"
    workers.start(lambda: done.append(2), 1)
    assert workers.wait(LIMIT) is None
    assert done[-1] == 2
    workers.close()


def test_closing_waits_for_the_job_at_hand():
    workers, begun, done = Workers(1), threading.Event(), []
    workers.start(lambda: (begun.set(), time.sleep(0.05), done.append(1)), 1)
    assert begun.wait(5)
    workers.close()
    assert done == [1]
    workers.close()


@pytest.mark.parametrize("num_hanging", [1, 2])
def test_hanging_threads_are_replaced_and_take_no_further_job(num_hanging):
    workers, released, done = Workers(2), threading.Event(), []
    before = threading.active_count()
    jobs = [released.wait] * num_hanging + [functools.partial(done.append, 1)]
    workers.start(share(jobs), 2)
    began = time.monotonic()
    assert isinstance(workers.wait(0.5), TimeoutError)
    assert 0.4 < time.monotonic() - began < 5
    assert done == ([1] if num_hanging == 1 else [])  # with both gone nobody takes the third
    workers.start(functools.partial(done.append, 2), 2)
    assert workers.wait(LIMIT) is None
    assert done[-2:] == [2, 2]
    released.set()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    workers.close()


def test_closing_gives_up_on_a_thread_that_hangs():
    workers, released = Workers(1), threading.Event()
    workers.start(released.wait, 1)
    began = time.monotonic()
    workers.close(limit=0.2)
    assert time.monotonic() - began < 5
    released.set()


HANGING = """
import time
from envs.engine.workers import Workers
workers = Workers(1)
workers.start(lambda: time.sleep(1000), 1)
print(repr(workers.wait(0.2)))
workers.close()
"""


def test_an_interpreter_ends_though_a_thread_hangs():
    command = [sys.executable, "-c", HANGING]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (
        0,
        "TimeoutError('after 0.2 s')\n",
        "",
    )


@pytest.mark.parametrize("num_tasks", [1, 3, 10, 50])
@pytest.mark.parametrize("envs_per_task", [1, 4, 20])
@pytest.mark.parametrize("num_threads", [1, 2, 16])
def test_chunks_cover_all_rows_and_share_few_tasks(num_tasks, envs_per_task, num_threads):
    chunks = split_rows(num_tasks, envs_per_task, num_threads)
    rows = [row for first, end in chunks for row in range(first, end)]
    assert rows == list(range(num_tasks * envs_per_task))
    assert all(first < end for first, end in chunks)
    split = sum(first % envs_per_task != 0 for first, _ in chunks)
    assert split <= 2 * num_threads  # each costs a model of 20 MB
