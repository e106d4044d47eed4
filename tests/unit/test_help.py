"""Help that teaches: commands say what they do, what options mean, and show an example."""

import shlex
from collections.abc import Iterator

import click
import pytest

from mailpoll.cli import cli
from mailpoll.cli.examples import EXAMPLES


def commands(command: click.Command = cli, *words: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            yield from commands(one, *words, name)
    else:
        yield " ".join(words), command


COMMANDS = dict(commands())
#: Commands whose output is for no program: processes, secrets and files as they are.
SPEAK_NO_JSON = {
    *("up", "web", "scheduler", "poller", "worker", "notifier", "watcher"),  # their log is JSON
    *("keys new", "tokens new"),  # a word that is put into a setting
    *("blob", "messages raw", "messages attachment"),  # bytes
    *("completion", "openapi"),  # a script; JSON anyway
}


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_says_what_it_does_in_a_sentence(words: str) -> None:
    first = (COMMANDS[words].help or "").strip().split("\n\n")[0]
    assert first[:1].isupper()
    assert first.rstrip(")").endswith((".", ":", "-")) or "mailpoll " in first, first


@pytest.mark.parametrize("words", COMMANDS)
def test_each_option_is_explained(words: str) -> None:
    options = [one for one in COMMANDS[words].params if isinstance(one, click.Option)]
    assert [one.opts for one in options if not one.help] == []


def test_every_command_has_an_example() -> None:
    assert COMMANDS.keys() == EXAMPLES.keys()


@pytest.mark.parametrize("words", COMMANDS)
def test_an_example_is_shown_and_can_be_typed(words: str) -> None:
    command = COMMANDS[words]
    with click.Context(command, info_name=words) as context:
        shown = command.get_help(context)
    for line in EXAMPLES[words]:
        assert line in shown
        typed = line.removeprefix('eval "$(').removesuffix(')"').partition(" > ")[0]
        arguments = shlex.split(typed)[1 + len(words.split()) :]
        assert shlex.split(typed)[1:][: len(words.split())] == words.split()
        # A wrong value or option is refused here; files need not be there.
        try:
            command.make_context(words, arguments, resilient_parsing=False)
        except click.BadParameter as error:
            assert "does not exist" in error.message


def test_every_command_that_tells_something_tells_it_to_programs_too() -> None:
    silent = {
        words
        for words, command in COMMANDS.items()
        if not any("--json" in one.opts for one in command.params)
    }
    assert silent == SPEAK_NO_JSON
