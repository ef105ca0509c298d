"""An evaluation and the history of a training as one HTML file that a person wants to read."""

from pixelwise.report.html import Report, write_report

__all__ = ["Report", "write_report"]
