"""Render docs/performance.md and its pictures from the results that the benchmarks kept.

``python -m bench.report``; a benchmark without a result is left out.
"""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.results import DIRECTORY, Plot, Result, shown

#: The order of the sections; results of other names follow.
ORDER = ["compare", "promise", "wide", "push", "soak", "growth", "console", "search"]

HEAD = """# Performance

Made by `python -m bench.report` from the results in `docs/performance/`; not edited by hand.

| to measure again | what |
| --- | --- |
| `make bench` | mailpoll beside the fastest peers, one round |
| `make bench-full` | every contender, three rounds, and mailpoll in detail |
| `make bench-wide` | 5,000 mailboxes with a 60 s interval |
| `make bench-promise` | bursts of mail with the API in use, and the deletion of it all |
| `make bench-push` | how soon the mail of 2,000 watched mailboxes is told of |
| `make soak` | 120 minutes with mail, accounts that come and go, and faults |
| `make bench-growth` | cost per message and poll as accounts and messages grow |
| `make bench-console` | the console's pages with 5,000 accounts and a million messages |
| `make bench-search` | searches among 100,000 and 1,000,000 messages, and the size of their index |
"""

COLOURS = ["#2f6fb3", "#e08a1e", "#3a9a5b", "#b3453b", "#7a5ba6", "#6b7280"]
STYLE = {
    "svg.fonttype": "none",  # text stays text: smaller, and in the reader's font
    "svg.hashsalt": "mailpoll",  # the same picture for the same figures
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


def main() -> None:
    mpl.rcParams.update(STYLE)
    sections = [section(Result.load(path)) for path in sorted(DIRECTORY.glob("*.json"), key=_order)]
    page = DIRECTORY.with_suffix(".md")
    page.write_text("\n".join([HEAD, *sections]))
    print(f"wrote {page}")


def _order(path: Path) -> tuple[int, str]:
    return (ORDER.index(path.stem) if path.stem in ORDER else len(ORDER), path.stem)


def section(result: Result) -> str:
    """The Markdown of one benchmark; its pictures are written on the way."""
    parts = [f"## {result.title}", *result.text]
    for plot in result.plots:
        draw(plot).savefig(DIRECTORY / f"{plot.name}.svg", metadata={"Date": None})
        parts.append(f"![{plot.title}]({DIRECTORY.name}/{plot.name}.svg)")
    parts += [table.markdown() for table in result.tables]
    facts = ", ".join(f"{name} {value}" for name, value in result.machine.items())
    parts.append(f"Measured on {result.date}: {facts}.")
    return "\n\n".join(parts) + "\n"


def draw(plot: Plot) -> Figure:
    """The picture, on a white ground so that it reads on light and dark pages alike."""
    bars = plot.kind == "bars"
    height = 1.3 + 0.24 * len(plot.x) * (len(plot.series) + 0.6) if bars else 4.2
    figure = Figure(figsize=(8, height), facecolor="white", layout="constrained")
    axes = figure.subplots()
    (_bars if bars else _lines)(axes, plot)
    axes.set_title(plot.title, loc="left", fontweight="bold")
    axes.grid(axis="x" if bars else "both", color="#d9dce1", linewidth=0.7)
    if len(plot.series) > 1:
        axes.legend(frameon=False)
    return figure


def _bars(axes: Axes, plot: Plot) -> None:
    """Lying bars, grouped by ``x``, so that long names are readable."""
    thickness = 0.8 / len(plot.series)
    for number, (name, values) in enumerate(plot.series.items()):
        places = [place + number * thickness for place in range(len(plot.x))]
        there = [(place, v) for place, v in zip(places, values, strict=True) if v is not None]
        drawn = axes.barh(
            [place for place, _ in there],
            [value for _, value in there],
            thickness,
            label=name,
            color=COLOURS[number % len(COLOURS)],
        )
        axes.bar_label(drawn, [shown(float(value)) for _, value in there], padding=3, fontsize=8)
    middle = thickness * (len(plot.series) - 1) / 2
    axes.set_yticks([place + middle for place in range(len(plot.x))], [str(x) for x in plot.x])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_ylabel(plot.x_label)
    axes.set_xlabel(plot.y_label)
    if plot.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _lines(axes: Axes, plot: Plot) -> None:
    for number, (name, values) in enumerate(plot.series.items()):
        gaps = [float("nan") if value is None else value for value in values]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(plot.x, gaps, label=name, color=colour, marker="o", markersize=4)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    if plot.log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


if __name__ == "__main__":
    main()
