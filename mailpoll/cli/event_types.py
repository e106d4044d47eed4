"""The option that chooses types of events: their list is read only when it is given."""

from collections.abc import Callable
from typing import Any

import click


def types_option(help_: str) -> Callable[[Any], Any]:
    """``--type`` as the argument ``types``, which can be repeated.

    Parameters:
      help_: what help says of it.
    """
    return click.option(
        "--type",
        "types",
        metavar="TYPE",
        multiple=True,
        help=help_,
        callback=_checked,
        shell_complete=_completed,
    )


def _checked(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> tuple[str, ...]:
    if given:
        words = _words()
        for unknown in (word for word in given if word not in words):
            raise click.BadParameter(f"{unknown!r} is not one of {', '.join(words)}")
    return given


def _completed(_context: click.Context, _option: click.Parameter, begun: str) -> list[str]:
    return [word for word in _words() if word.startswith(begun)]


def _words() -> list[str]:
    from ..models import EventType

    return list(map(str, EventType))
