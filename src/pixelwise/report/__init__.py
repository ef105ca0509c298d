"""Pages that a person wants to read, one HTML file each: about an evaluation and its training, and about a data set."""

from pixelwise.report.dataset import write_dataset_page
from pixelwise.report.html import Report, write_report

__all__ = ["Report", "write_dataset_page", "write_report"]
