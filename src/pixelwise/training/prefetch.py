"""Batches made ahead of the step that takes them."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import cv2

from pixelwise.data.sets.sampling import Batch
from pixelwise.task import Sampler


class Prefetcher:
    """Makes batches ahead in threads, in order. OpenCV and NumPy release the interpreter's lock where the work is."""

    def __init__(self, sampler: Sampler, threads: int = 2, ahead: int = 3) -> None:
        cv2.setNumThreads(1)  # the threads are ours
        self._sampler = sampler
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="samples")

    def batches(self, groups: Iterator[Sequence[int]]) -> Iterator[Batch]:
        """The batch of each group of sample numbers."""
        waiting: deque[Future[Batch]] = deque()
        for numbers in groups:
            waiting.append(self._pool.submit(self._sampler.batch, numbers))
            if len(waiting) > self._ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
