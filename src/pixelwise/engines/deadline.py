"""Work that is given up when it takes too long, in the middle of whatever it does.

An exporter offers no way to end it, and a network may keep it busy for hours. It cannot be left running in a thread of
its own, where it would hold the interpreter and alter the network while others use it; and in a process of its own it
would need the network, whose code another process may not find. So it runs where it is called, and is interrupted as
Ctrl-C would interrupt it: an exception comes up in its midst, and its own `finally` and `with` clean up behind it.
"""

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from typing_extensions import override

Made = TypeVar("Made")
RETRY_SECONDS = 0.2  # until the work is asked again to end, if it does not or could not
_DELICATE = frozenset({"__enter__", "__exit__", "__del__", "<module>"})
"""What must not be interrupted: a context that is being entered or left, an import that would stay half done."""
_UNHEARD = frozenset({"weakref", "_weakrefset", "torch.utils.weak"})
"""Modules whose functions Python calls while it frees things: what comes up in them goes nowhere."""


class _TooLongError(BaseException):
    """Comes up in the midst of the work. Not an `Exception`, since exporters catch many of these and go on."""


def within(seconds: float, work: Callable[[], Made]) -> Made:
    """What `work` returns or raises, unless it takes longer.

    It is interrupted between two steps of Python, so that one step that takes long, such as a convolution, is finished
    first.

    Args:
        seconds: by the clock on the wall.
        work: runs in this thread.

    Raises:
        TimeoutError: it took longer.

    >>> within(60.0, lambda: 2 * 21)
    42
    """
    watch = _Watch(threading.get_ident(), time.monotonic() + seconds)
    try:
        try:
            with _unheard():
                watch.start()
                return work()
        finally:
            watch.end()
    except _TooLongError:
        watch.end()  # which may itself have been interrupted
        raise TimeoutError(f"took longer than {seconds:g} seconds") from None


class _Watch(threading.Thread):
    """Looks at the clock beside a thread that works."""

    def __init__(self, worker: int, deadline: float) -> None:
        super().__init__(name="deadline", daemon=True)
        self._worker, self._deadline = worker, deadline
        self._lock, self._ended = threading.Lock(), threading.Event()

    @override
    def run(self) -> None:
        """Interrupt the worker once the time is over, again and again until it has ended."""
        left = self._deadline - time.monotonic()
        while not self._ended.wait(max(left, 0)):
            with self._lock:
                if not self._ended.is_set() and _is_at_work(sys._current_frames().get(self._worker)):
                    _interrupt(self._worker, _TooLongError)
            left = RETRY_SECONDS

    def end(self) -> None:
        """The work has ended: nothing interrupts the thread from here on."""
        with self._lock:
            self._ended.set()
            _interrupt(self._worker, None)  # takes back what has not come up yet


@contextmanager
def _unheard() -> Iterator[None]:
    """Print nothing where an interruption came up while something was freed, and so went nowhere: another follows."""
    before = sys.unraisablehook

    def hear(found: "sys.UnraisableHookArgs") -> None:
        if not issubclass(found.exc_type, _TooLongError):
            before(found)

    sys.unraisablehook = hear
    try:
        yield
    finally:
        sys.unraisablehook = before


def _is_at_work(frame: FrameType | None) -> bool:
    """Whether a thread, by its innermost frame, does the work, and nothing that must not be interrupted."""
    inner = None
    while frame is not None and frame.f_code is not within.__code__:
        is_delicate = frame.f_code.co_name in _DELICATE or frame.f_globals.get("__name__") in _UNHEARD
        if is_delicate or frame.f_code is _Watch.end.__code__:
            return False
        inner, frame = frame, frame.f_back
    return frame is not None and inner is not None


def _interrupt(thread: int, error: type[BaseException] | None) -> None:
    """Let an exception come up in a thread at its next step, or take it back."""
    raised = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)
