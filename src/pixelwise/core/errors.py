"""The exceptions that a user may see.

::

    PixelwiseError            anything that is not a bug of ours; the command line prints it alone
    ├── DataError             images, masks, a data set's layout or labels          (exit status 2)
    │   └── UnreadableError   one file that cannot be used; `code` says in which way
    ├── SettingError          a setting, an option or a combination of them         (exit status 2)
    ├── RunError              a run folder or checkpoint that cannot be used        (exit status 2)
    ├── OutputError           a place that cannot be written (rights, full disk)    (exit status 2)
    └── ModelError            a network and its input do not fit                    (exit status 2)

A message names the file or the setting, the rule, what was found, and what to do next.
"""

import difflib
from collections.abc import Iterable


class PixelwiseError(Exception):
    """Base of every error that pixelwise raises for its user."""


class DataError(PixelwiseError):
    """An image, a mask, or a data set breaks a rule."""


class UnreadableError(DataError):
    """A file cannot be used.

    Attributes:
        code: why: "unreadable", "truncated", "unknown-format", "float-labels" or "non-finite", as the doctor names it.
    """

    def __init__(self, message: str, code: str = "unreadable") -> None:
        super().__init__(message)
        self.code = code

    def about(self, name: object) -> "UnreadableError":
        """The same error, whose message begins with the name of a file or of a part of it.

        >>> str(UnreadableError("is truncated.", "truncated").about("a.tif"))
        'a.tif: is truncated.'
        """
        return type(self)(f"{name}: {self}", self.code)


def truncated(message: str) -> UnreadableError:
    """The error of a file that ends before its pixels do."""
    return UnreadableError(message, "truncated")


class SettingError(PixelwiseError):
    """A setting or option has a value that makes no sense, alone or with another."""


class RunError(PixelwiseError):
    """A run folder or a checkpoint is missing, unfinished, foreign, or of another version."""


class OutputError(PixelwiseError):
    """A file or folder cannot be written."""


class ModelError(PixelwiseError):
    """A network does not fit the image or the settings that it was given."""


def near(name: str, choices: Iterable[str]) -> str:
    """Name the choices that look like `name`, or all of them: the last sentence of an error message.

    >>> near("widht", ["width", "depth"])
    'did you mean width?'
    >>> near("x", ["same", "valid"])
    'choose from: same, valid.'
    """
    known = list(choices)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"choose from: {', '.join(known)}."


def reason(error: BaseException, longest: int = 200) -> str:
    """The first cause of an error, as one line without its full stop, cut where it is too long.

    >>> reason(ValueError("too small\\nby far.")), reason(AssertionError())
    ('too small by far', 'AssertionError')
    """
    while error.__cause__ is not None:
        error = error.__cause__
    words = " ".join(str(error).split()).rstrip(" .:") or type(error).__name__
    return words if len(words) <= longest else f"{words[: longest - 3]}..."
