"""Threads that run kernels; the kernels hold no GIL, so the threads run side by side."""

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable

Job = Callable[[], object]

_SLICES = 10  # of a time limit: a process that was suspended must not find it used up at once


class _Batch:
    """Jobs handed out together, and what has become of them."""

    def __init__(self, jobs: list[Job], num_threads: int) -> None:
        self.jobs = jobs
        self.leaving = iter(range(num_threads - 1, -1, -1))  # hands out 0 to the last to leave
        self.order = iter(range(len(jobs)))  # hands out each number once, to any thread
        self.done = [False] * len(jobs)
        self.errors: dict[int, BaseException] = {}
        self.over = False
        self.finished: queue.SimpleQueue[None] = queue.SimpleQueue()  # wakes whoever waits for it
        self.abandoned = False


class Workers:
    """A fixed number of threads that share the jobs of one batch at a time.

    A thread inside C code cannot be stopped. One that hangs is left to itself: it takes no further
    job, and others take its place.
    """

    def __init__(self, num_threads: int) -> None:
        """Start the threads.

        Args:
            num_threads: At least one.
        """
        self._num_threads = num_threads
        self._batch: _Batch | None = None
        self._start_threads()

    def start(self, jobs: Iterable[Job]) -> None:
        """Hand out jobs, which the threads take one by one; `wait` must follow."""
        assert self._batch is None
        self._batch = _Batch(list(jobs), self._num_threads)
        for _ in self._threads:
            self._batches.put(self._batch)

    def wait(self, limit: float) -> dict[int, BaseException]:
        """Wait for all jobs, but not for ever.

        Args:
            limit: Seconds, of which those do not count in which this process was suspended.

        Returns:
            What went wrong, by the job's number: what it raised, or a TimeoutError where it has
            not ended. Whatever such a job may still write to must be given up.
        """
        if self._batch is None:
            return {}
        batch, slices = self._batch, 0
        while not batch.over and slices < _SLICES:
            try:
                batch.finished.get(timeout=limit / _SLICES)
            except queue.Empty:
                slices += 1
        self._batch = None  # not before: after a KeyboardInterrupt one can wait again
        if not batch.over:
            batch.abandoned = True
            late = [number for number, done in enumerate(batch.done) if not done]
            self._stop()
            self._start_threads()
            return {**batch.errors, **dict.fromkeys(late, TimeoutError(f"after {limit:g} s"))}
        return batch.errors

    def close(self, limit: float = 0.9) -> None:
        """Let the jobs at hand end and stop the threads. May be called again.

        Args:
            limit: Seconds to wait for all; a thread that hangs ends with the process.
        """
        if self._batch is not None:
            self._batch.abandoned = True
        self._stop()
        deadline = time.monotonic() + limit
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start_threads(self) -> None:
        self._batches: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        # Threads know the queue only, so that they keep nothing alive but themselves.
        self._threads = [
            threading.Thread(
                target=_work,
                args=(self._batches,),
                name=f"mtrl-engine-{index}",
                daemon=True,
            )
            for index in range(self._num_threads)
        ]
        # Dropped without `close`, or at the interpreter's end, the threads still stop.
        self._stop = weakref.finalize(self, _stop, self._batches, self._num_threads)
        for thread in self._threads:
            thread.start()


def _stop(batches: "queue.SimpleQueue[_Batch | None]", num_threads: int) -> None:
    for _ in range(num_threads):
        batches.put(None)


def _work(batches: "queue.SimpleQueue[_Batch | None]") -> None:
    while (batch := batches.get()) is not None:
        for number in batch.order:
            try:
                batch.jobs[number]()
            except BaseException as error:  # handed to the thread that waits
                batch.errors[number] = error
            batch.done[number] = True
            if batch.abandoned:
                return
        if next(batch.leaving) == 0:  # the last one out: one wake-up for the thread that waits
            batch.over = True
            batch.finished.put(None)
        del batch  # an idle thread keeps no job alive
