import pytest

from pixelwise.core.errors import reason


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n a\nb.\n"), "a b"),
        (AssertionError(), "AssertionError"),
        (RuntimeError("x" * 300), "x" * 197 + "..."),
        (OSError(2, "No such file"), "[Errno 2] No such file"),
    ],
)
def test_a_reason_is_one_short_line(error: Exception, line: str) -> None:
    assert reason(error) == line


def test_a_reason_is_the_first_cause() -> None:
    last = ValueError("last")
    last.__cause__ = KeyError("first")
    assert reason(last) == "'first'"
