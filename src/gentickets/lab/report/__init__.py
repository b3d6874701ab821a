"""The report on a run: its figures, and one page that stands on its own."""

from gentickets.lab.report.figures import write_figures
from gentickets.lab.report.page import verdict_table, write_report

__all__ = ["verdict_table", "write_figures", "write_report"]
