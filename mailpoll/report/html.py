"""A report as HTML that mail programs show: tables, styles in place, nothing to be loaded."""

from functools import cache

import jinja2

from .figures import Report

UNITS = ("bytes", "kB", "MB", "GB", "TB")


def document(report: Report) -> str:
    """The whole document; its title would do as a subject."""
    most = max((day["messages"] for day in report.days), default=0)
    return _template().render(report=report, most=most)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mailpoll.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "size": _size, "safe_text": _safe_text}
    return environment.get_template("report.html")


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _size(value: float) -> str:
    unit = 0
    while value >= 1_000 and unit < len(UNITS) - 1:
        value, unit = value / 1_000, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


def _safe_text(text: str | None) -> str:
    """A server's words without control characters, which HTML has no way to write."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text or "")
