"""How long work tells how far it is."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called now and then with what is done and what there is in all; may raise, to end the work."""
