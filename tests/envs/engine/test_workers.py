import functools
import threading
import time

import pytest

from envs.engine.simulation import split_rows
from envs.engine.workers import Workers


def test_every_job_runs_once_whatever_the_number_of_threads():
    for num_threads in (1, 2, 7):
        workers = Workers(num_threads)
        for batch in range(3):
            done: list[int] = []
            workers.start([functools.partial(done.append, index) for index in range(20 * batch)])
            workers.wait()
            assert sorted(done) == list(range(20 * batch))
        workers.close()


def test_jobs_run_side_by_side():
    workers = Workers(2)
    barrier = threading.Barrier(2, timeout=5)  # passes only if both are in it at once
    workers.start([barrier.wait, barrier.wait])
    workers.wait()
    workers.close()


def test_a_failing_job_is_raised_and_the_threads_live_on():
    workers = Workers(2)

    def fail():
        raise ZeroDivisionError("in a job")

    workers.start([fail, lambda: None])
    with pytest.raises(ZeroDivisionError, match="in a job"):
        workers.wait()
    done = []
    workers.start([lambda: done.append(1)])
    workers.wait()
    assert done == [1]
    workers.close()


def test_closing_waits_for_the_job_at_hand():
    workers, done = Workers(1), []
    workers.start([lambda: (time.sleep(0.05), done.append(1))])
    workers.close()
    assert done == [1]
    workers.close()


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
