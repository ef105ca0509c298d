"""Batches made ahead: the same ones, in order, and not too many."""

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from pixelwise.core.errors import DataError
from pixelwise.data.sets.sampling import Batch
from pixelwise.training.prefetch import Prefetcher


class Numbers:
    """Images that are their numbers; the numbers from `broken` on cannot be read."""

    def __init__(self, broken: int = 10**6) -> None:
        self.broken = broken

    def batch(self, numbers: Sequence[int]) -> Batch:
        if max(numbers) >= self.broken:
            raise DataError("image.tif: no such file.")
        return Batch(np.array(numbers, np.float32), {"labels": np.array(numbers) + 1})


@pytest.mark.parametrize(("threads", "ahead"), [(1, 0), (1, 3), (4, 1), (5, 20)])
def test_threads_change_neither_batches_nor_their_order(threads: int, ahead: int) -> None:
    prefetcher = Prefetcher(Numbers(), threads, ahead)
    groups = [range(start, start + 3) for start in range(0, 30, 3)]
    for _ in range(2):
        found = list(prefetcher.batches(iter(groups)))
        assert [batch.images.tolist() for batch in found] == [list(group) for group in groups]
        assert all((batch.targets["labels"] == batch.images + 1).all() for batch in found)
    prefetcher.close()


def test_an_error_in_a_thread_reaches_the_training() -> None:
    prefetcher = Prefetcher(Numbers(broken=4))
    batches = prefetcher.batches(iter([range(3), range(3, 6)]))
    assert next(batches).images.tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"image\.tif: no such file\.$"):
        next(batches)
    prefetcher.close()


def test_no_more_batches_are_made_ahead_than_asked_for() -> None:
    taken: list[int] = []

    def groups() -> Iterator[Sequence[int]]:
        for number in range(20):
            taken.append(number)
            yield [number]

    prefetcher = Prefetcher(Numbers(), threads=2, ahead=3)
    batches = prefetcher.batches(groups())
    next(batches)
    assert taken == [0, 1, 2, 3]
    next(batches)
    assert taken == [0, 1, 2, 3, 4]
    prefetcher.close()
    own = [thread for thread in threading.enumerate() if thread.name.startswith("samples")]
    for thread in own:
        thread.join(5)
    assert not any(thread.is_alive() for thread in own)
