"""Sizes as people write them, and what this process holds, seen from outside."""

import mmap
import sys

import numpy as np
import psutil
import pytest

from pixelwise.core import memory
from pixelwise.core.errors import SettingError
from pixelwise.core.memory import (
    default_limit,
    growth,
    held_bytes,
    parse_size,
    peak_ram_bytes,
    release_free_memory,
    size_text,
)

MB = 10**6


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 * 1024**3),
        ("1.5 MB", 1_500_000),
        ("800m", 800 * MB),
        (" 7 ", 7),
        ("7b", 7),
        ("3k", 3000),
        ("3KI", 3072),
        ("0.5TiB", 2**39),
        ("1tb", 10**12),
        ("12Mi", 12 * 1024**2),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "two GB", "-1GB", "1,5GB", "3 i", "4ib", "1e9", "2 PB", "2 G B", "5GBs"])
def test_texts_that_are_no_size(text: str) -> None:
    with pytest.raises(SettingError, match=f'"{text}" is not a size\\. Write a number and a unit, as in 2GiB or 800MB'):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 MiB"), (2**20, "1 MiB"), (1023 * 2**20, "1023 MiB"), (2**30, "1.0 GiB"), (2.25 * 2**30, "2.2 GiB")],
)
def test_sizes_as_text(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize("size", [5 * 2**20, 700 * 2**20, 2**30, 37 * 2**30])
def test_what_is_written_is_read(size: int) -> None:
    assert parse_size(size_text(size)) == size


def test_the_limit_leaves_a_part_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free = type("Free", (), {"available": 2**40})
    monkeypatch.setattr(memory, "held_bytes", lambda: 50)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert 50 + 2**39 < default_limit() < 50 + 2**40
    free.available = 0
    assert default_limit() == 50 + 2**28


def test_the_limit_here_is_more_than_is_held() -> None:
    assert held_bytes() < default_limit() < held_bytes() + psutil.virtual_memory().total


def test_the_peak_is_no_less_than_what_is_held() -> None:
    block = np.ones(60 * MB, np.uint8)
    held = held_bytes()
    assert held > block.nbytes
    assert peak_ram_bytes() >= 0.95 * held  # the system counts its pages now and then


def fresh(size: int) -> mmap.mmap:
    """Memory that comes from the system, not from what this process freed before."""
    block = mmap.mmap(-1, size)
    for page in range(0, size, mmap.PAGESIZE):
        block[page] = 1
    return block


def test_memory_that_comes_and_goes_is_seen() -> None:
    grown = growth(lambda: fresh(50 * MB).close(), seconds=0.0005)
    assert 45 * MB < grown < 100 * MB
    assert growth(lambda: None) < 20 * MB


def test_memory_that_stays_is_seen_however_rarely_it_looks() -> None:
    kept: list[mmap.mmap] = []
    assert growth(lambda: kept.append(fresh(50 * MB)), seconds=0.2) > 45 * MB


def test_the_watch_ends_with_work_that_fails() -> None:
    def fails() -> None:
        raise ValueError("it failed")

    with pytest.raises(ValueError, match="it failed"):
        growth(fails)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the C library gives memory back by itself")
def test_what_was_freed_goes_back_to_the_system() -> None:
    small = [bytearray(60_000) for _ in range(1000)]  # too small to be given back at once
    last = bytearray(60_000)  # keeps the heap from shrinking at its end
    before = held_bytes()
    del small
    release_free_memory()
    assert held_bytes() < before - 40 * MB
    assert len(last) == 60_000
