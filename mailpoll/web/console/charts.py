"""Small pictures as SVG, made here: no script draws them, and they follow the page's colours."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup

#: Size of a chart in its own units.
WIDTH, HEIGHT, TOP, FOOT = 720, 150, 16, 18
SPARK_WIDTH, SPARK_HEIGHT = 120, 24


def sparkline(values: Sequence[int]) -> Markup:
    """A bar for each day; the number beside it says the rest, so it is hidden from readers."""
    most = max(values, default=0)
    step = SPARK_WIDTH / max(1, len(values))
    bars = "".join(
        f"M{place * step:.0f} {SPARK_HEIGHT}v-{max(2, round(SPARK_HEIGHT * value / most))}h3V24z"
        for place, value in enumerate(values)
        if value
    )
    frame = Markup(
        '<svg class="spark" viewBox="0 0 {} {}" aria-hidden="true">'
        '<path class="none" d="M0 23.5h120"/><path d="{}"/></svg>'
    )
    return frame.format(SPARK_WIDTH, SPARK_HEIGHT, bars)


def hours(items: Sequence[Mapping[str, Any]]) -> Markup:
    """A bar for each hour: new mail below, what first imports brought above it, paler."""
    total = sum(one["messages"] for one in items)
    most = max((one["messages"] for one in items), default=0)
    step = WIDTH / max(1, len(items))
    room = HEIGHT - FOOT
    parts = [
        Markup('<line class="base" x1="0" x2="{}" y1="{}" y2="{}"/>').format(WIDTH, room, room)
    ]
    for place, one in enumerate(items):
        hour = datetime.fromisoformat(one["hour"])
        new = one["messages"] - one["imported"]
        tall = (room - TOP) * one["messages"] / most if most else 0
        low = (room - TOP) * new / most if most else 0
        words = f"{hour:%H:%M} UTC: {one['messages']:,} messages"
        if one["imported"]:
            words += f", {one['imported']:,} of them by imports"
        bars = Markup("").join(
            _bar(place * step + 2, room - top, step - 4, high, kind)
            for top, high, kind in ((tall, tall - low, "col imported"), (low, low, "col"))
            if high > 0
        )
        area = _bar(place * step, 0, step, room, "area")
        parts.append(Markup("<g><title>{}</title>{}{}</g>").format(words, area, bars))
        if most and one["messages"] == most:
            label = Markup('<text class="most" x="{:.1f}" y="{}">{:,}</text>')
            parts.append(label.format((place + 0.5) * step, TOP - 5, most))
        if place % max(1, len(items) // 6) == 0:
            label = Markup('<text x="{:.1f}" y="{}">{}</text>')
            parts.append(label.format(place * step + 2, HEIGHT - 4, f"{hour:%H:%M}"))
    words = f"{total:,} messages in {len(items)} hours, at most {most:,} in one"
    frame = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
    return frame.format(WIDTH, HEIGHT, words, Markup("").join(parts))


def _bar(left: float, top: float, width: float, height: float, kind: str) -> Markup:
    shape = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
    return shape.format(kind, left, top, width, height)
