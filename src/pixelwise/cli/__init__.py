"""The command line: parse, call, print. PyTorch is imported inside the commands, so that --help stays fast."""

import sys

from pixelwise.cli.base import INTERRUPTED, app

# The order in which --help lists their commands.
from pixelwise.cli import data  # isort: skip
from pixelwise.cli import training  # isort: skip
from pixelwise.cli import prediction  # isort: skip
from pixelwise.cli import networks  # isort: skip

__all__ = ["app", "data", "main", "networks", "prediction", "training"]


def main() -> None:
    """Run the command line with the exit statuses of the contract."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
