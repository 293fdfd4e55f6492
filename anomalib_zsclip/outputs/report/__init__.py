"""The page that a person decides on: ``report.html`` beside ``predictions.csv``.

``callback`` collects a row per picture while a run goes on, ``run_info`` says what produced them, ``page`` puts both into
the template; ``report.css`` and the parts of ``script`` become part of the page, which needs no server and no network.
"""

from .callback import ReportPage

__all__ = ["ReportPage"]
