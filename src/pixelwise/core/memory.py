"""How much memory this process holds, and how much it may hold."""

import ctypes
import gc
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
from pydantic import ByteSize, TypeAdapter

from pixelwise.core.errors import SettingError

# Stricter than pydantic, which takes "1,5GB" for a byte.
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(|[kmgt]i?)b?\s*", re.IGNORECASE)
_FREE_SHARE = 0.6  # of the free memory may be used, unless the user sets a limit
_LEAST = 256 * 2**20  # bytes that may be used even if less is free: the system may still make room


def peak_ram_bytes() -> int:
    """The most memory that this process has held so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # macOS counts bytes, Linux kibibytes


def held_bytes() -> int:
    """The memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def default_limit() -> int:
    """Bytes that this process may hold unless the user sets a limit: what it holds now, and a share of what is free."""
    return held_bytes() + max(int(_FREE_SHARE * psutil.virtual_memory().available), _LEAST)


def parse_size(text: str) -> int:
    """The number of bytes of a size as people write it.

    Raises:
        SettingError: the text is not a size.

    >>> parse_size("2GiB"), parse_size("1.5 MB"), parse_size("800m")
    (2147483648, 1500000, 800000000)
    """
    match = _SIZE.fullmatch(text)
    if not match:
        raise SettingError(f'"{text}" is not a size. Write a number and a unit, as in 2GiB or 800MB.')
    return TypeAdapter(ByteSize).validate_python(f"{match[1]}{match[2]}B")


def size_text(size: float) -> str:
    """A number of bytes as text for people.

    >>> size_text(3 * 2**30), size_text(5 * 2**20)
    ('3.0 GiB', '5 MiB')
    """
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def release_free_memory() -> None:
    """Return freed memory to the system, which the C library would otherwise keep (Linux with glibc)."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def growth(work: Callable[[], object], seconds: float = 0.002) -> int:
    """The most bytes by which the memory of this process grows while `work` runs, sampled every few milliseconds.

    Memory that was freed before and is used again does not count, so work that is repeated grows less.
    """
    before = most = held_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, held_bytes())
            time.sleep(seconds)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        work()
    finally:
        most = max(most, held_bytes())
        done.set()
        watcher.join()
    return most - before
