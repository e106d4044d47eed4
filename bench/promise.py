"""What mailpoll promises under load: bursts of mail, with the API in use, then the end of it all.

``python -m bench.promise [--set embedded|production] [--json]``. For each case accounts with empty
mailboxes are polled, the mail arrives in all of them, and one more poll brings it in; meanwhile the
API is read, written to and asked whether it is alive. Then every account is deleted.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from bench import corpus, detail
from bench.__main__ import SETS
from bench.contenders.mailpoll import Api, Mailpoll
from bench.mailboxes import Mailboxes, mailboxes
from bench.results import DIRECTORY, Cell, Result, Table

ACCOUNTS = 100
#: Seconds after which a phase is given up.
LIMIT = 900


@dataclass(frozen=True)
class Case:
    """So many messages in each mailbox, and the seconds that all of them may take.

    Parameters:
      message: makes one of mailbox ``n``, the ``i``-th.
    """

    title: str
    messages: int
    message: Callable[[int, int], bytes]
    seconds: float


CASES = (
    Case(
        "100 mailboxes, 50 new mails of 75 kB in each",
        50,
        lambda box, number: corpus.attached(f"{number}.{box}", 54_000),
        180,
    ),
    Case("20,000 mails at once", 200, corpus.news, 500),
)
ACCOUNTS_THERE = "SELECT uuid FROM email_accounts"
#: What requests of a kind may take, in milliseconds: the 99th percentile.
REQUESTS = {"reads": 100, "writes": 250, "health": 20}


def measure(case: Case, kind: type[Mailpoll], directory: Path) -> dict[str, float]:
    with mailboxes(ACCOUNTS, 0, directory / "dovecot") as mail:
        own = directory / kind.name
        own.mkdir()
        with mail.at(0) as (server, _), kind(server, own, LIMIT) as mailpoll:
            mailpoll.cold_import(0)
            arrive(case, mail)
            requests = detail.Reads()
            with detail.requesting(requests_of(mailpoll.api), requests):
                took = mailpoll.poll(len(mail.sent))
            if mailpoll.verified(mail.sent) < len(mail.sent):
                raise RuntimeError("what was stored is not what was sent")
            return {
                "messages": len(mail.sent),
                "seconds": took.seconds,
                "per_second": len(mail.sent) / took.seconds,
                **{name: milliseconds(requests, name) for name in REQUESTS},
                "failed": requests.failed.total(),
                "deleted_per_second": len(mail.sent) / seconds_to_delete(mailpoll),
            }


def arrive(case: Case, mail: Mailboxes) -> None:
    for box, user in enumerate(mail.users):
        mail.deliver(user, [case.message(box, number) for number in range(case.messages)])


def requests_of(api: Api) -> detail.Requests:
    """Reads of all kinds, and after each of them a write and a look at the health."""
    first = api("GET", "/admin/email-accounts?limit=1")["items"][0]["id"]
    days = count(1)

    def write() -> None:
        api("PATCH", f"/admin/email-accounts/{first}", {"retention_expunged_days": next(days)})

    def health() -> None:
        api("GET", "/healthz")

    found: detail.Requests = {}
    for name, read in detail.reads_of(api).items():
        found |= {f"reads {name}": read, f"writes after {name}": write}
        found[f"health after {name}"] = health
    return found


def milliseconds(requests: detail.Reads, kind: str) -> float:
    kinds = [name for name in requests.seconds if name.startswith(kind)]
    return requests.percentile(0.99, *kinds) * 1_000


def seconds_to_delete(mailpoll: Mailpoll) -> float:
    accounts = [uuid for (uuid,) in mailpoll.ask(ACCOUNTS_THERE)]

    def delete() -> None:
        for uuid in accounts:
            mailpoll.api("DELETE", f"/admin/email-accounts/{uuid}")

    return mailpoll.timed(delete, lambda: not mailpoll.ask(ACCOUNTS_THERE), 0.05).seconds


def document(found: dict[str, dict[Case, dict[str, float]]]) -> Result:
    rows: list[list[Cell]] = [
        [f"{case.title}, {backing}", case.seconds, *(figures[name] for name in COLUMNS)]
        for backing, cases in found.items()
        for case, figures in cases.items()
    ]
    return Result("Promised load", [TEXT], [Table("Bursts", [*HEAD, *COLUMNS.values()], rows)])


HEAD = ["case", "promised, s"]
COLUMNS = {
    "seconds": "all processed after, s",
    "per_second": "messages/s",
    "reads": f"reads p99, ms (promised {REQUESTS['reads']})",
    "writes": f"writes p99 ({REQUESTS['writes']})",
    "health": f"/healthz p99 ({REQUESTS['health']})",
    "failed": "failed requests",
    "deleted_per_second": "messages deleted/s (200)",
}
TEXT = (
    f"{ACCOUNTS} accounts whose mailboxes were empty get all the mail at once, and one poll of "
    "each brings it in; what was stored is compared with what was sent by SHA-256. Meanwhile the "
    f"API is asked {detail.READS} times a second. At last all accounts are deleted, with every "
    "blob. What is promised is the production set's; the embedded set must reach half of it. Made "
    "by `make bench-promise`."
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.promise", description=__doc__)
    parser.add_argument("--set", choices=SETS, action="append", dest="sets")
    parser.add_argument("--json", action="store_true", help="keep the result for the report")
    options = parser.parse_args()
    found: dict[str, dict[Case, dict[str, float]]] = {}
    for backing in options.sets or SETS:
        for case in CASES:
            with tempfile.TemporaryDirectory(prefix="mailpoll-promise-") as name:
                directory = Path(name)
                directory.chmod(0o755)  # the servers run as users of their own
                found.setdefault(backing, {})[case] = measure(case, SETS[backing], directory)
    result = document(found)
    print("\n\n".join(table.markdown() for table in result.tables))
    if options.json:
        result.save(DIRECTORY / "promise.json")


if __name__ == "__main__":
    main()
