"""Work that is given up: it ends where it is, it cleans up, and nothing of it comes up later."""

import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import contextmanager, suppress
from types import FrameType

import pytest

from pixelwise.engines import deadline
from pixelwise.engines.deadline import within

AT_ONCE = 0.05  # seconds
ENOUGH = 10**8  # steps: what is not interrupted ends some day, and the test with it


def busy() -> None:
    """Takes long, in many small steps."""
    total = 0
    for step in range(ENOUGH):
        total += step


def test_what_is_quick_is_returned() -> None:
    assert within(60.0, lambda: "made") == "made"


def test_an_error_of_the_work_is_its_own() -> None:
    with pytest.raises(ZeroDivisionError):
        within(60.0, lambda: 1 / 0)


def test_what_takes_too_long_is_given_up() -> None:
    with pytest.raises(TimeoutError, match=r"^took longer than 0\.05 seconds$"):
        within(AT_ONCE, busy)


def test_it_cleans_up_behind_itself() -> None:
    left: list[str] = []

    @contextmanager
    def mode() -> object:
        try:
            yield
        finally:
            left.append("mode")

    def work() -> None:
        try:
            with mode():
                busy()
        finally:
            left.append("work")

    with pytest.raises(TimeoutError):
        within(AT_ONCE, work)
    assert left == ["mode", "work"]


def swallowing(kind: type[BaseException]) -> Callable[[], str]:
    """Goes on when it is interrupted for the first time, as some exporters do."""

    def work() -> str:
        with suppress(kind):
            busy()
        busy()
        return "went on"

    return work


@pytest.mark.parametrize("kind", [Exception, BaseException])
def test_work_that_catches_what_comes_up_is_interrupted_again(kind: type[BaseException]) -> None:
    with pytest.raises(TimeoutError):
        within(AT_ONCE, swallowing(kind))


def wait(event: threading.Event) -> None:
    """Until something has happened, in steps that can be interrupted."""
    while not event.wait(0.01):
        pass


class Delicate:
    """A context that takes its time to be left."""

    def __init__(self, may_end: threading.Event) -> None:
        self.may_end, self.is_left = may_end, False

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception: object) -> None:
        wait(self.may_end)
        self.is_left = True


def test_a_context_that_is_being_left_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = threading.Event()
    is_at_work = deadline._is_at_work

    def look(frame: FrameType | None) -> bool:
        found = is_at_work(frame)
        if not found:
            looked.set()
        return found

    monkeypatch.setattr(deadline, "_is_at_work", look)
    context = Delicate(looked)  # is left only after the watch has found that it must not interrupt

    def work() -> None:
        with context:
            pass
        busy()

    with pytest.raises(TimeoutError):
        within(AT_ONCE, work)
    assert context.is_left


def test_what_may_be_interrupted() -> None:
    found: list[bool] = []

    def look() -> None:
        found.append(deadline._is_at_work(sys._getframe()))

    within(60.0, look)
    within(60.0, lambda: exec(compile("look()", "module.py", "exec"), {"look": look}))  # as when it is imported
    within(60.0, lambda: weakref.finalize(look, look)())  # as when something is freed
    look()  # not the work at all
    assert found == [True, False, False, False]
    assert not deadline._is_at_work(None)


def test_nothing_comes_up_after_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is over in the very moment in which the work ends."""
    end, ended = deadline._Watch.end, []

    def late(watch: deadline._Watch) -> None:
        if not ended:
            ended.append(True)
            deadline._interrupt(watch._worker, deadline._TooLongError)
        end(watch)

    monkeypatch.setattr(deadline._Watch, "end", late)
    with suppress(TimeoutError):  # both are right
        assert within(60.0, lambda: "made") == "made"
    assert sum(number for number in range(1000)) == 499500


class Freed:
    """Something else that goes wrong where Python frees things, and that goes on being told."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __del__(self) -> None:
        raise self.error


def test_what_comes_up_while_things_are_freed_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[type[BaseException]] = []
    before = sys.unraisablehook
    try:
        sys.unraisablehook = mine = lambda found: heard.append(found.exc_type)
        within(60.0, lambda: [Freed(deadline._TooLongError), Freed(ZeroDivisionError)].clear())
        assert sys.unraisablehook is mine
    finally:
        sys.unraisablehook = before
    assert heard == [ZeroDivisionError]
    assert capsys.readouterr().err == ""


def test_no_thread_stays() -> None:
    for _ in range(20):
        within(60.0, lambda: None)
    with pytest.raises(TimeoutError):
        within(AT_ONCE, busy)
    for thread in threading.enumerate():
        if thread.name == "deadline":
            thread.join(60)
            assert not thread.is_alive()


def test_ctrl_c_comes_through() -> None:
    def work() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        within(60.0, work)


def test_two_threads_have_a_deadline_each() -> None:
    found: dict[str, object] = {}

    def slow() -> None:
        try:
            within(AT_ONCE, busy)
        except TimeoutError as error:
            found["slow"] = str(error)
        finally:
            ended.set()

    ended = threading.Event()
    thread = threading.Thread(target=slow)
    thread.start()
    within(60.0, lambda: wait(ended))
    thread.join()
    assert found == {"slow": "took longer than 0.05 seconds"}
