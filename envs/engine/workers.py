"""Threads that run kernels; the kernels hold no GIL, so the threads run side by side."""

import queue
import threading
import time
import weakref
from collections.abc import Callable

Job = Callable[[], object]

_SLICES = 10  # of a time limit: a process that was suspended must not find it used up at once


class _Batch:
    """A job that several threads run at once, and what has become of it."""

    def __init__(self, job: Job, times: int) -> None:
        self.job = job
        self.leaving = iter(range(times - 1, -1, -1))  # hands out 0 to the last to leave
        self.error: BaseException | None = None
        self.over = times == 0
        self.finished: queue.SimpleQueue[None] = queue.SimpleQueue()  # wakes whoever waits for it
        self.abandoned = False


class Workers:
    """A fixed number of threads that run one job at a time, together.

    A thread inside C code cannot be stopped. One that hangs is left to itself: it takes no further
    job, and others take its place.
    """

    def __init__(self, num_threads: int) -> None:
        """Start the threads.

        Args:
            num_threads: At least one.
        """
        self.num_threads = num_threads
        self._batch: _Batch | None = None
        self._start_threads()

    def start(self, job: Job, times: int) -> None:
        """Have threads run a job; `wait` must follow.

        Args:
            job: Shares its work with whoever runs it at the same time.
            times: How often to run it, at most once a thread; one that comes late finds its turn
                taken by another, so nobody waits for it.
        """
        assert self._batch is None
        self._batch = _Batch(job, times)
        for _ in range(times):
            self._batches.put(self._batch)

    def wait(self, limit: float) -> BaseException | None:
        """Wait until nobody runs the job any more, but not for ever.

        Args:
            limit: Seconds, of which those do not count in which this process was suspended.

        Returns:
            What went wrong: what the job raised, last if several times, or a TimeoutError where
            it has not ended. Whatever it may still write to must then be given up.
        """
        if self._batch is None:
            return None
        batch, slices = self._batch, 0
        while not batch.over and slices < _SLICES:
            try:
                batch.finished.get(timeout=limit / _SLICES)
            except queue.Empty:
                slices += 1
        self._batch = None  # not before: after a KeyboardInterrupt one can wait again
        if not batch.over:
            batch.abandoned = True
            self._stop()
            self._start_threads()
            return TimeoutError(f"after {limit:g} s")
        return batch.error

    def close(self, limit: float = 0.9) -> None:
        """Let the jobs at hand end and stop the threads. May be called again.

        Args:
            limit: Seconds to wait for all; a thread that hangs ends with the process.
        """
        if self._batch is not None:
            self._batch.abandoned = True
            self._batch = None
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
            for index in range(self.num_threads)
        ]
        # Dropped without `close`, or at the interpreter's end, the threads still stop.
        self._stop = weakref.finalize(self, _stop, self._batches, self.num_threads)
        for thread in self._threads:
            thread.start()


def _stop(batches: "queue.SimpleQueue[_Batch | None]", num_threads: int) -> None:
    for _ in range(num_threads):
        batches.put(None)


def _work(batches: "queue.SimpleQueue[_Batch | None]") -> None:
    while (batch := batches.get()) is not None:
        try:
            if not batch.abandoned:
                batch.job()
        except BaseException as error:  # handed to the thread that waits
            batch.error = error
        if batch.abandoned:
            return
        if next(batch.leaving) == 0:  # the last one out: one wake-up for the thread that waits
            batch.over = True
            batch.finished.put(None)
        del batch  # an idle thread keeps no job alive
