"""``python -m bench mailpoll``: mailpoll alone. ``python -m bench compare``: beside its peers."""

import argparse
import json
import signal
import sys
import tempfile
from contextlib import ExitStack, nullcontext
from pathlib import Path

from bench import detail
from bench.compare import CONTENDERS, Comparison, details
from bench.contenders.mailpoll import Mailpoll, MailpollProduction
from bench.mailboxes import mailboxes

SETS = {"embedded": Mailpoll, "production": MailpollProduction}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True)
    alone = commands.add_parser("mailpoll", help="mailpoll alone: quick, and what took the CPU")
    alone.add_argument("--set", choices=SETS, default="embedded")
    alone.add_argument("--rtt", type=float, default=0, help="milliseconds to the server and back")
    alone.add_argument("--polls", action="store_true", help="the scheduler's polls too: 5 minutes")
    alone.add_argument("--reads", action="store_true", help="read from the API during the import")
    alone.add_argument("--large", action="store_true", help="a message of 50 MB at the end")
    alone.set_defaults(run=run_alone)
    beside = commands.add_parser("compare", help="mailpoll beside its peers")
    beside.add_argument(
        "--contenders", type=names_of, default=list(CONTENDERS), help=", ".join(CONTENDERS)
    )
    beside.add_argument(
        "--rtt", type=numbers_of, default=[0, 40], help="milliseconds, such as 0,40"
    )
    beside.add_argument("--rounds", type=int, default=1)
    beside.add_argument("--seed", type=int, default=1, help="of the order in each round")
    beside.add_argument("--details", action="store_true", help="mailpoll alone too: 12 minutes")
    beside.set_defaults(run=run_compare)
    for command in (alone, beside):
        command.add_argument("--accounts", type=int, default=100)
        command.add_argument("--messages", type=int, default=104, help="per mailbox")
        command.add_argument("--limit", type=float, default=600, help="seconds for each phase")
        command.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # and the servers with it
    with tempfile.TemporaryDirectory(prefix="mailpoll-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # the servers run as users of their own
        options.run(options, directory)


def names_of(words: str) -> list[str]:
    names = words.split(",")
    if unknown := set(names) - set(CONTENDERS):
        raise argparse.ArgumentTypeError(f"no such contender: {', '.join(unknown)}")
    return names


def numbers_of(words: str) -> list[float]:
    return [float(word) for word in words.split(",")]


def run_compare(options: argparse.Namespace, directory: Path) -> None:
    with mailboxes(options.accounts, options.messages, directory / "dovecot") as mail:
        comparison = Comparison(
            mail,
            directory,
            options.contenders,
            options.rtt,
            options.rounds,
            options.seed,
            options.limit,
        )
        comparison.run()
        found = {}
        for kind in SETS.values() if options.details else []:
            found[kind.name] = details(
                kind, mail, directory / f"{kind.name}-details", options.limit
            )
        result = comparison.result(found)
    print("\n\n".join([result.text[-1], *(table.markdown() for table in result.tables)]))
    if options.json:
        result.save(options.json)


def run_alone(options: argparse.Namespace, directory: Path) -> None:
    with ExitStack() as stack:
        mail = stack.enter_context(
            mailboxes(options.accounts, options.messages, directory / "dovecot")
        )
        server, _ = stack.enter_context(mail.at(options.rtt))
        own = directory / options.set
        own.mkdir()
        contender = SETS[options.set](server, own, options.limit)
        mailpoll = stack.enter_context(contender)
        reads = detail.Reads()
        requests = detail.reads_of(mailpoll.api)
        meanwhile = detail.requesting(requests, reads) if options.reads else nullcontext()
        found = detail.basics(mailpoll, mail, meanwhile)
        messages, accounts = len(mail.sent), options.accounts
        figures = {
            "set": options.set,
            "messages": messages,
            "bytes": mail.size,
            "verified": found.verified,
            "import_seconds": found.cold_import.seconds,
            "messages_per_second": messages / found.cold_import.seconds,
            "cpu_ms_per_message": found.cold_import.cpu / messages * 1_000,
            "cpu_by_process": found.cpu,
            "cpu_of_servers": found.servers_cpu,
            "idle_round_seconds": found.idle.seconds,
            "cpu_ms_per_idle_poll": found.idle.cpu / accounts * 1_000,
            "new_mail_seconds": found.news.seconds,
            "peak_mb": {name: peak / 1e6 for name, peak in found.peaks.items()},
        }
        if options.reads:
            figures["read_ms"] = {f"p{p}": reads.percentile(p / 100) * 1_000 for p in (50, 95, 99)}
            figures["reads_failed"] = dict(reads.failed)
        if options.polls:
            figures["cpu_ms_per_scheduled_poll"] = detail.scheduled_polls(mailpoll) * 1_000
        if options.large:
            peaks = detail.large_message(mailpoll, mail)
            figures["peak_mb_50_mb_message"] = {name: peak / 1e6 for name, peak in peaks.items()}
    rounded = json.loads(json.dumps(figures), parse_float=lambda text: round(float(text), 2))
    for name, value in rounded.items():
        print(f"{name:26} {value}")
    if options.json:
        options.json.write_text(json.dumps(rounded, indent=2))


if __name__ == "__main__":
    main()
