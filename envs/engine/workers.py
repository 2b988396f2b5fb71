"""Threads that run kernels; the kernels hold no GIL, so the threads run side by side."""

import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator

Job = Callable[[], None]


class Workers:
    """A fixed set of threads that share the jobs of one batch at a time."""

    def __init__(self, num_threads: int) -> None:
        """Start the threads.

        Args:
            num_threads: At least one.
        """
        self._batches: queue.SimpleQueue[Iterator[Job] | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        # Threads know the queues only, so that they keep nothing alive but themselves.
        self._threads = [
            threading.Thread(
                target=_work,
                args=(self._batches, self._finished),
                name=f"mtrl-engine-{index}",
                daemon=True,
            )
            for index in range(num_threads)
        ]
        self._running = False
        # Dropped without `close`, or at the interpreter's end, the threads still stop.
        self._stop = weakref.finalize(self, _stop, self._batches, num_threads)
        for thread in self._threads:
            thread.start()

    def start(self, jobs: Iterable[Job]) -> None:
        """Hand out jobs, which the threads take one by one; `wait` must follow."""
        assert not self._running
        self._running = True
        shared = iter(list(jobs))  # a list's iterator hands out each item once, to any thread
        for _ in self._threads:
            self._batches.put(shared)

    def wait(self) -> None:
        """Wait for all jobs; raises what the first failing one raised."""
        if not self._running:
            return
        errors = [self._finished.get() for _ in self._threads]
        self._running = False
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """Let the jobs at hand end and stop the threads. May be called again."""
        self._stop()
        for thread in self._threads:
            thread.join()


def _stop(batches: "queue.SimpleQueue[Iterator[Job] | None]", num_threads: int) -> None:
    for _ in range(num_threads):
        batches.put(None)


def _work(
    batches: "queue.SimpleQueue[Iterator[Job] | None]",
    finished: "queue.SimpleQueue[BaseException | None]",
) -> None:
    while (batch := batches.get()) is not None:
        error: BaseException | None = None
        try:
            for job in batch:
                job()
        except BaseException as raised:  # handed to the thread that waits
            error = raised
        del batch  # an idle thread keeps no job alive
        finished.put(error)
