"""The report of a study: one page that needs nothing but itself."""

from emoprobe.report.html import render

__all__ = ["render"]
