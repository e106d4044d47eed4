"""``python -m mailpoll``: the same as the ``mailpoll`` command."""

from .cli import main

main()
