"""How long the console's pages take with 5,000 accounts and a million messages, and their size.

``python -m bench.console [--set embedded|production] [--messages N] [--json]`` writes
``docs/performance/console.json`` when told to; without ``--set``, both sets are measured.
"""

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import urlencode

import falcon.testing

from bench.filled import Filling, uuid
from bench.growth import SETS, TOKEN, Servers, say
from bench.results import DIRECTORY, Cell, Result, Table
from mailpoll import database
from mailpoll.models import EmailRawMessage
from mailpoll.settings import settings

ACCOUNTS = 5_000
TIMES = 15
#: Messages of a conversation.
MEMBERS = 50
ORIGIN = {"Origin": "http://falconframework.org"}


def pages(filling: Filling) -> dict[str, str]:
    """Every page by what it shows, of the largest mailbox where it is of one."""
    number = next(n for n in range(filling.messages // 2, filling.messages) if n % 20 == 0)
    largest = uuid(1)
    hook, export, deletion = things(largest)
    conversation(number)
    return {
        "overview": "/",
        "accounts": "/accounts",
        "accounts by part of the address": "/accounts?address=user00077",
        "accounts by next poll": "/accounts?sort=next_poll",
        "an account": f"/accounts/{largest}",
        "an account's form": f"/accounts/{largest}/edit",
        "deleting an account": f"/accounts/{largest}/delete",
        "exporting an account": f"/accounts/{largest}/export",
        "attachments of an account": f"/accounts/{largest}/attachments",
        "adding an account": "/accounts/new",
        "adding accounts by a file": "/accounts/import",
        "messages": "/messages",
        "messages of an account": f"/messages?account={largest}",
        "a message": f"/messages/{number}",
        "messages that failed": "/messages?status=failed",
        "a conversation": f"/threads/{number}",
        "search": "/search",
        "failed": "/failed",
        "tasks": "/tasks",
        "webhooks": "/webhooks",
        "adding a webhook": "/webhooks/new",
        "a webhook": f"/webhooks/{hook}",
        "deletions": "/deletions",
        "a deletion": f"/deletions/{deletion}",
        "exports": "/exports",
        "an export": f"/exports/{export}",
        "holds": "/holds",
        "keys": "/keys",
        "audit log": "/audit",
        "settings": "/settings",
    }


def things(account: str) -> tuple[str, str, str]:
    """A webhook, an export of an account, and the deletion of another, which all begin."""
    from mailpoll.web.app import create_app

    key = {"Authorization": f"Bearer {TOKEN}"}
    api = falcon.testing.TestClient(create_app(), headers=key)
    hook = api.simulate_post("/admin/webhooks", json={"url": "https://192.0.2.1/hook"})
    export = api.simulate_post("/admin/exports", json={"account_id": account, "format": "zip"})
    api.simulate_delete(f"/admin/email-accounts/{uuid(ACCOUNTS)}")
    deletions = api.simulate_get("/admin/delete-jobs").json["items"]
    return hook.json["id"], export.json["id"], deletions[0]["id"]


def conversation(number: int) -> None:
    """Let messages of the largest mailbox be one, by the number of one of them."""
    with database.transaction():
        account = EmailRawMessage.get_by_id(number).account_id
        mine = EmailRawMessage.select(EmailRawMessage.id).where(EmailRawMessage.account == account)
        ids = [row.id for row in mine.where(EmailRawMessage.id <= number).limit(MEMBERS)]
        EmailRawMessage.update(thread_id=number).where(EmailRawMessage.id.in_(ids)).execute()


def signed_in() -> falcon.testing.TestClient:
    from mailpoll.web.app import create_app

    app = create_app()
    accept = {"Accept": "text/html", **ORIGIN}
    form = {**accept, "Content-Type": "application/x-www-form-urlencoded"}
    answer = falcon.testing.TestClient(app).simulate_post(
        "/login", body=urlencode({"token": TOKEN}), headers=form
    )
    cookie = answer.headers["set-cookie"].partition(";")[0]
    return falcon.testing.TestClient(app, headers={**accept, "Cookie": cookie})


def measure(backing: str, messages: int) -> dict[str, tuple[float, float, int]]:
    """Median and longest milliseconds, and bytes, of each page."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="mailpoll-console-") as path, ExitStack() as stack:
        Path(path).chmod(0o755)
        servers = Servers(backing, Path(path), stack)
        servers.start()
        with servers.installation():
            filling = Filling(ACCOUNTS, messages, backing == "production")
            say(f"{backing}: {ACCOUNTS:,} accounts, {messages:,} messages")
            filling.fill(settings().database)
            say("filled")
            client = signed_in()
            for name, address in pages(filling).items():
                found[name] = look(client, address)
                say(f"  {name}: {found[name]}")
    return found


def look(client: falcon.testing.TestClient, address: str) -> tuple[float, float, int]:
    took = []
    for _ in range(TIMES):
        start = time.perf_counter()
        answer = client.simulate_get(address)
        took.append((time.perf_counter() - start) * 1_000)
        assert answer.status_code == 200, (address, answer.text)
    return statistics.median(took), max(took), len(answer.content)


def document(found: dict[str, dict[str, tuple[float, float, int]]], messages: int) -> Result:
    backings = list(found)
    columns = [f"{name}, ms" for name in backings] + [f"longest, {name}" for name in backings]
    rows: list[list[Cell]] = [
        [
            page,
            *(found[name][page][0] for name in backings),
            *(found[name][page][1] for name in backings),
            found[backings[0]][page][2] / 1_000,
        ]
        for page in found[backings[0]]
    ]
    text = (
        f"{ACCOUNTS:,} accounts and {messages:,} messages, three mailboxes with a twentieth of all "
        f"mail each; pages about a mailbox are about the largest. Medians of {TIMES} requests, the "
        "first of them with cold caches, without the network; the style sheet and the script are "
        "fetched once. Made by `make bench-console`."
    )
    table = Table("Pages of the console", ["page", *columns, "kB"], rows)
    return Result("Console", [text], [table])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.console", description=__doc__)
    parser.add_argument("--set", choices=SETS, help="default: both")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true", help="keep the result for the report")
    options = parser.parse_args()
    sets = [options.set] if options.set else SETS
    found = {}
    for name in sets:
        # A process of its own: mailpoll sets itself up for one queue when it is imported.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found[name] = pool.submit(measure, name, options.messages).result()
    result = document(found, options.messages)
    print("\n\n".join(table.markdown() for table in result.tables))
    if options.json:
        result.save(DIRECTORY / "console.json")


if __name__ == "__main__":
    main()
