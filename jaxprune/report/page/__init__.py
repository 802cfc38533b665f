"""The report: one HTML file with everything that saved results say, tied to K."""

from jaxprune.report.page.document import Page, make, write

__all__ = ["Page", "make", "write"]
