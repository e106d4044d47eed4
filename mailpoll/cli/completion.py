"""``mailpoll completion``: the script that lets a shell complete commands and options."""

import click
from click.shell_completion import get_completion_class

#: What click asks for in the environment, as its scripts set it.
VARIABLE = "_MAILPOLL_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def print_completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options and their words in a shell.

    \b
      bash:  eval "$(mailpoll completion bash)"     in ~/.bashrc
      zsh:   eval "$(mailpoll completion zsh)"      in ~/.zshrc, behind compinit
      fish:  mailpoll completion fish > ~/.config/fish/completions/mailpoll.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(context.find_root().command, {}, "mailpoll", VARIABLE).source())
