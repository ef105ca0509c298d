"""An evaluation and the history of a training as one HTML file that a person wants to read."""

from pixelwise.report.html import Case, write_report

__all__ = ["Case", "write_report"]
