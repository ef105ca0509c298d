"""How long work reports its progress."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called now and then with the amount done and the total; may raise an exception to end the work."""
