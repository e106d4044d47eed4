"""How commands speak: words and tables for people, JSON for programs, one line for what is wrong.

What it takes to draw on a terminal is loaded at the first use, so that commands start fast.
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pydantic import ValidationError
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

#: Where click's context keeps the console: whatever draws on a terminal must share one.
CONSOLE = "mailpoll.console"


#: The option of commands that list something, newest first.
at_most = click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=50,
    show_default=True,
    help="how many at most",
)


class Failure(click.ClickException):
    """One line on standard error, exit code 1."""

    def show(self, file: Any = None) -> None:  # noqa: ARG002
        click.echo(f"mailpoll: {self.message}", err=True)


class CouldNotRun(Failure):
    """The same with exit code 2, where 1 has a meaning of its own."""

    exit_code = 2


def failing_with_2(command: Callable[..., Any]) -> Callable[..., Any]:
    """Tell a command that could not run from one that found something."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except Failure as failure:
            raise CouldNotRun(failure.message) from None
        except (KeyboardInterrupt, click.Abort):
            raise CouldNotRun("interrupted") from None
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception:
            traceback.print_exc()
            sys.exit(CouldNotRun.exit_code)

    return wrapper


def refused(error: "ValidationError") -> Failure:
    """What is wrong with the values of a command's options, all in one line."""
    return Failure("; ".join(map(_wrong, error.errors())))


def _wrong(error: Any) -> str:
    return f"{error['loc'][0]}: {error['msg'].removeprefix('Value error, ')}"


# For programs


def show_json(document: Any, indent: int | None = None) -> None:
    """Print a document: in one line, so that lists are one object per line, or indented."""
    click.echo(json.dumps(document, default=str, indent=indent))


def tell(done: dict[str, Any], words: str, *, as_json: bool) -> None:
    """What a command has done: as one object, or in words."""
    if as_json:
        show_json(done)
    else:
        click.echo(words)


# For people


def console() -> "Console":
    """The terminal of the command that runs, or the file that is in its place."""
    meta = click.get_current_context().meta
    if CONSOLE not in meta:
        from rich.console import Console

        meta[CONSOLE] = Console()
    found: Console = meta[CONSOLE]
    return found


def show(
    what: "RenderableType", *, style: str | None = None, soft_wrap: bool | None = None
) -> None:
    """Print words or a table. A string's square brackets are markup: ``safe`` has none.

    Parameters:
      soft_wrap: lines are as long as they are, also where that is more than the terminal has.
    """
    console().print(what, style=style, soft_wrap=soft_wrap)


def styled(text: str = "", style: str = "") -> "Text":
    """Text without markup; more can be appended."""
    from rich.text import Text

    return Text(text, style=style)


def safe(text: str | None) -> "Text":
    """A server's words for the terminal: no markup, no control sequences."""
    return styled("".join(c if c.isprintable() else "\ufffd" for c in text or ""))


def new_table(*columns: str, title: str | None = None) -> "Table":
    """A table to add rows to."""
    from rich.table import Table

    return Table(*columns, title=title)


def readable_size(size: float) -> str:
    """Bytes with a unit: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1_000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1_000
    return f"{size:.1f} TB"


@contextmanager
def counting(words: Callable[[Any], str]) -> Iterator[Callable[[Any], None]]:
    """Shows on a terminal how far something is, each time that it is told."""
    if not console().is_terminal:
        yield lambda _: None
        return
    from rich.live import Live
    from rich.spinner import Spinner

    spinner = Spinner("dots")
    with Live(spinner, console=console(), refresh_per_second=5, transient=True):
        yield lambda done: spinner.update(text=words(done))
