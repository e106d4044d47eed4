"""An example of each command, shown at the end of its help.

In one place, so that one mailbox and one webhook run through all of them.
"""

import click

#: By the words of the command; a line each.
EXAMPLES = {
    "accounts add": (
        "mailpoll accounts add ana@example.org",
        "mailpoll accounts add ana@example.org --host imap.example.org --since 2026-01-01 --push",
    ),
    "accounts delete": ("mailpoll accounts delete ana@example.org --yes",),
    "accounts deletions": ("mailpoll accounts deletions --limit 10",),
    "accounts edit": (
        "mailpoll accounts edit ana@example.org --password",
        "mailpoll accounts edit ana@example.org --interval 300 --retention-days 365",
    ),
    "accounts import": ("mailpoll accounts import accounts.csv --dry-run",),
    "accounts list": ("mailpoll accounts list --state auth_failed --json",),
    "accounts pause": ("mailpoll accounts pause ana@example.org ben@example.org",),
    "accounts poll": ("mailpoll accounts poll ana@example.org",),
    "accounts receipt": ("mailpoll accounts receipt 7c1d… --json",),
    "accounts reconcile": ("mailpoll accounts reconcile ana@example.org",),
    "accounts resume": ("mailpoll accounts resume ana@example.org",),
    "accounts show": ("mailpoll accounts show ana@example.org",),
    "accounts test": ("mailpoll accounts test ana@example.org",),
    "api-keys create": ("mailpoll api-keys create dashboard --scope read --expires 2027-01-01",),
    "api-keys list": ("mailpoll api-keys list",),
    "api-keys revoke": ("mailpoll api-keys revoke dashboard",),
    "attachments": ("mailpoll attachments ana@example.org --type image/ --min-size 1000000",),
    "audit": ("mailpoll audit --action account.delete --since 2026-01-01",),
    "blob": ("mailpoll blob 0b9f…/3a/3a7b… > message.eml",),
    "completion": ('eval "$(mailpoll completion bash)"',),
    "doctor": (
        "mailpoll doctor",
        "mailpoll doctor ana@example.org --host imap.example.org",
    ),
    "events": ("mailpoll events --type message.new --account ana@example.org --follow",),
    "export": (
        "mailpoll export ana@example.org --format maildir --output ana",
        "mailpoll export ana@example.org --query 'invoice has:attachment' --output invoices.mbox",
    ),
    "fsck": ("mailpoll fsck --account ana@example.org --repair",),
    "holds lift": ("mailpoll holds lift ana@example.org",),
    "holds list": ("mailpoll holds list",),
    "holds set": ("mailpoll holds set ana@example.org --reason 'case 2026/7'",),
    "import": ("mailpoll import archive@example.org --create old-mail.mbox",),
    "keys new": ("mailpoll keys new",),
    "keys remove": ("mailpoll keys remove 3f9a0c1e",),
    "keys rotate": ("mailpoll keys rotate",),
    "keys status": ("mailpoll keys status",),
    "messages attachment": ("mailpoll messages attachment 4711 1 --output contract.pdf",),
    "messages failed": ("mailpoll messages failed",),
    "messages list": ("mailpoll messages list ana@example.org --folder INBOX --since 2026-11-01",),
    "messages raw": ("mailpoll messages raw 4711 --output message.eml",),
    "messages retry": ("mailpoll messages retry 4711 4712",),
    "messages show": ("mailpoll messages show 4711",),
    "migrate": ("mailpoll migrate",),
    "notifier": ("mailpoll notifier",),
    "notify test": ("mailpoll notify test",),
    "openapi": ("mailpoll openapi openapi.json",),
    "poller": ("mailpoll poller",),
    "reindex": ("mailpoll reindex --account ana@example.org",),
    "report": (
        "mailpoll report --period week",
        "mailpoll report --html > report.html",
    ),
    "retention": (
        "mailpoll retention --dry-run --list",
        "mailpoll retention --account ana@example.org",
    ),
    "scheduler": ("mailpoll scheduler",),
    "search": (
        "mailpoll search 'from:ana invoice has:attachment after:2026-01-01 larger:1M -draft'",
    ),
    "stats": ("mailpoll stats ana@example.org --json",),
    "tokens new": ("mailpoll tokens new",),
    "top": ("mailpoll top --interval 5",),
    "up": ("mailpoll up",),
    "watcher": ("mailpoll watcher",),
    "web": ("mailpoll web",),
    "webhooks add": (
        "mailpoll webhooks add https://example.org/hook --type message.new --payload fields",
    ),
    "webhooks deliveries": ("mailpoll webhooks deliveries 5f2c… --outcome failed",),
    "webhooks disable": ("mailpoll webhooks disable 5f2c…",),
    "webhooks enable": ("mailpoll webhooks enable 5f2c…",),
    "webhooks list": ("mailpoll webhooks list",),
    "webhooks remove": ("mailpoll webhooks remove 5f2c… --yes",),
    "webhooks replay": ("mailpoll webhooks replay 5f2c… --since 2026-11-01",),
    "webhooks show": ("mailpoll webhooks show 5f2c…",),
    "webhooks test": ("mailpoll webhooks test 5f2c…",),
    "worker": ("mailpoll worker",),
}


def show(group: click.Group) -> None:
    """End the help of each command with its example."""
    for words, lines in EXAMPLES.items():
        command: click.Command = group
        for word in words.split():
            assert isinstance(command, click.Group)
            command = command.commands[word]
        shown = "\n".join(f"  {line}" for line in lines)
        command.epilog = f"\b\nFor example:\n{shown}"
