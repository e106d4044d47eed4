"""What came and what was done in a day, a week or a month, for people who look once in a while."""

from .figures import PERIODS, Mail, Report, make
from .html import document

__all__ = ["PERIODS", "Mail", "Report", "document", "make"]
