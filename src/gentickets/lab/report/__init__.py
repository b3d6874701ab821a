"""The report on a run, or on a study: figures, and one page that stands on its own."""

from gentickets.lab.report.figures import write_figures
from gentickets.lab.report.page import verdict_table, write_report
from gentickets.lab.report.study_page import published_table, published_words, study_table, unjudged, write_study
from gentickets.lab.report.transfers import transfer_table

__all__ = [
    "published_table",
    "published_words",
    "study_table",
    "transfer_table",
    "unjudged",
    "verdict_table",
    "write_figures",
    "write_report",
    "write_study",
]
