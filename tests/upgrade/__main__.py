"""Fill an installation with an earlier version, and let this one take it over.

``python -m tests.upgrade <tag or commit> [--set embedded|production]``; ``docs/releasing.md`` says
what is checked.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from mailpoll.settings import new_key, new_token
from tests.integration.system import PASSWORD
from tests.integration.test_message_read import letter
from tests.release.program import Broken, Program, expect, wait_until
from tests.servers.dovecot import Dovecot
from tests.servers.postgres import Postgres
from tests.servers.process import free_ports
from tests.servers.seaweed import Seaweed
from tests.servers.valkey import Valkey
from tests.upgrade.schema import schema

ROOT = Path(__file__).parents[2]
SETS = ("embedded", "production")
#: Mailboxes that stay active, and messages in each by the time that the old version ends.
MAILBOXES = 4
PROCESSED, WAITING = 8, 5
#: Processes that take part in what is checked; webhooks have tests of their own.
PROCESSES = ("web", "scheduler", "poller", "worker")
#: Lets the time be over in which the last attempt at a message had to end: minutes, otherwise.
HURRY = """
from mailpoll import database, runtime
from mailpoll.models import EmailRawMessage as Message
runtime.start()
with database.transaction():
    begun = (Message.status == "stored") & (Message.attempts > 1)
    Message.update(next_attempt_at=database.now()).where(begun).execute()
"""
#: What may be otherwise in a message afterwards.
MOVING = {"status", "error"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.upgrade", description=__doc__)
    parser.add_argument("ref")
    parser.add_argument("--set", dest="sets", action="append", choices=SETS)
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="mailpoll-upgrade-"))
    directory.chmod(0o755)  # servers that drop root's rights must get in
    try:
        old = check_out(given.ref, directory / "old")
        for name in given.sets or SETS:
            with backing(name, directory / name) as place:
                Upgrade(old, place).check()
    except (Broken, subprocess.CalledProcessError) as error:
        sys.exit(f"upgrade check: {error}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    say(f"from {given.ref}: nothing is lost")


def say(text: str) -> None:
    print(f"upgrade check: {text}", flush=True)


def check_out(ref: str, directory: Path) -> Path:
    """The old version in an environment of its own; its interpreter."""
    source = directory / "source"
    source.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", ref], cwd=ROOT, check=True, stdout=subprocess.PIPE
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive, check=True)
    environment = directory / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    lock = ["--require-hashes", "-r", str(source / "requirements.lock")]
    subprocess.run([*pip, *lock], check=True, cwd=directory)
    subprocess.run([*pip, "--no-deps", str(source)], check=True, cwd=directory)
    say(f"{ref} is installed")
    return python


@dataclass(slots=True)
class Place:
    """Where both versions work.

    Parameters:
      variables: what configures them.
      fresh: the same for an empty database, to compare with.
    """

    name: str
    directory: Path
    dovecot: Dovecot
    variables: dict[str, str]
    fresh: dict[str, str]
    sent: Counter[str] = field(default_factory=Counter)

    def deliver(self, address: str, count: int) -> None:
        """Put more messages, each with an attachment, into a mailbox."""
        for _ in range(count):
            self.sent[address] += 1
            raw = letter({"plain.txt": "text/plain"})
            number = f"X-Number: {address} {self.sent[address]}\r\n".encode()
            self.dovecot.deliver(address, number + raw)


@contextmanager
def backing(name: str, directory: Path) -> Iterator[Place]:
    directory.mkdir()
    directory.chmod(0o755)
    with ExitStack() as stack:
        dovecot = stack.enter_context(Dovecot(directory / "dovecot"))
        valkey = stack.enter_context(Valkey(directory / "valkey"))
        assert isinstance(dovecot, Dovecot)
        assert isinstance(valkey, Valkey)
        variables = {
            "REDIS_URL": valkey.url,
            "MAILPOLL_DATA_DIR": str(directory / "data"),
            "MAILPOLL_SECRET_KEY": new_key(),
            "MAILPOLL_API_TOKEN": new_token(),
            "MAILPOLL_LOG_FORMAT": "json",
            "MAILPOLL_IMAP_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",
            "MAILPOLL_IMAP_CA_FILE": str(dovecot.ca_file),
            "MAILPOLL_IMAP_PORTS": str(dovecot.imaps_port),
            "MAILPOLL_WORKER_PROCESSES": "1",
            "MAILPOLL_SWEEP_AFTER": "10",
            "MAILPOLL_MAX_ATTEMPTS": "1",
        }
        fresh = {"MAILPOLL_DATA_DIR": str(directory / "fresh")}
        if name == "production":
            postgres = stack.enter_context(Postgres(directory / "postgres"))
            seaweed = stack.enter_context(Seaweed(directory / "seaweed"))
            assert isinstance(postgres, Postgres)
            assert isinstance(seaweed, Seaweed)
            variables["DATABASE_URL"] = postgres.create_database("upgraded")
            variables["STORAGE_URL"] = seaweed.url_of("upgraded")
            fresh["DATABASE_URL"] = postgres.create_database("fresh")
        yield Place(name, directory, dovecot, variables, fresh)


class Upgrade:
    """One way from the old version to this one, on one backing set."""

    def __init__(self, old: Path, place: Place) -> None:
        (port,) = free_ports(1)
        self.place = place
        self.old = Program(old, place.directory, place.variables, port)
        self.new = Program(Path(sys.executable), place.directory, place.variables, port)
        self.mailboxes = {f"box{number}@example.org": "" for number in range(MAILBOXES)}
        self.paused = ""
        self.job = ""
        self.failed = 0
        self.before: dict[str, dict[int, dict[str, Any]]] = {}
        self.events: list[dict[str, Any]] = []

    def check(self) -> None:
        try:
            self.fill()
            self.migrate()
            self.take_over()
            self.go_back()
        finally:
            self.old.stop()
            self.new.stop()

    def say(self, text: str) -> None:
        say(f"{self.place.name}: {text}")

    # --- the old version

    def fill(self) -> None:
        old = self.old
        old.run("migrate")
        old.start(*PROCESSES)
        wait_until(old.ready, "the old version to be ready")
        for address in (*self.mailboxes, "paused@example.org", "deleted@example.org"):
            self.place.deliver(address, PROCESSED)
        for address in self.mailboxes:
            self.mailboxes[address] = self._add(address)
        self.paused = self._add("paused@example.org")
        deleted = self._add("deleted@example.org")
        everywhere = (*self.mailboxes.values(), self.paused, deleted)
        for account in everywhere:
            self._await(old, account, PROCESSED)
        old.ask("POST", f"/admin/email-accounts/{self.paused}/pause")
        old.ask("DELETE", f"/admin/email-accounts/{deleted}")
        gone = f"/admin/delete-jobs/{deleted}"
        wait_until(lambda: old.ask("GET", gone)["finished_at"], "the deletion to be done")
        self.job = deleted
        self._fail_one()
        self._let_wait()
        self._write_down()
        old.stop()
        waiting = _queued(self.place.variables["REDIS_URL"])
        expect(waiting, "the queue should hold entries of the old version")
        self.say(f"filled; the queues hold {waiting} entries")

    def _add(self, address: str) -> str:
        new = {
            "address": address,
            "password": PASSWORD,
            "host": "localhost",
            "port": self.place.dovecot.imaps_port,
            "poll_interval": 3_600,
        }
        return str(self.old.ask("POST", "/admin/email-accounts", new)["id"])

    def _await(self, program: Program, account: str, count: int, *but: str) -> None:
        """Wait until an account has so many messages, all of them processed, or ``but``."""

        def done() -> bool:
            found = program.messages(account).values()
            states = {message["status"] for message in found}
            return len(found) == count and states <= {"processed", *but}

        wait_until(done, f"{count} processed messages of an account")

    def _fail_one(self) -> None:
        """Let the worker break at a message until it is given up."""
        old, (address, account) = self.old, next(iter(self.mailboxes.items()))
        known = old.messages(account).keys()
        old.stop("worker")
        points = ",".join(f"claimed:raise:{number}" for number in range(1, 6))
        old.start("worker", MAILPOLL_TEST="1", MAILPOLL_FAULT=points)
        self.place.deliver(address, 1)
        old.ask("POST", f"/admin/email-accounts/{account}/poll")

        def given_up() -> bool:
            old.script(HURRY)
            found = [m for m in old.messages(account).values() if m["status"] == "failed"]
            self.failed = found[0]["id"] if found else 0
            return bool(found)

        wait_until(given_up, "a message to be given up")
        expect(self.failed not in known, "the wrong message has failed")

    def _let_wait(self) -> None:
        """Fetch mail while nobody processes it."""
        self.old.stop("worker")
        self._news(self.old, WAITING)
        for account in self.mailboxes.values():
            path = f"/admin/email-accounts/{account}/messages?status=stored"

            def waiting(path: str = path) -> bool:
                return len(list(self.old.pages(path))) == WAITING

            wait_until(waiting, "messages that wait")

    def _news(self, program: Program, count: int) -> None:
        for address, account in self.mailboxes.items():
            self.place.deliver(address, count)
            program.ask("POST", f"/admin/email-accounts/{account}/poll")

    def _write_down(self) -> None:
        for account in (*self.mailboxes.values(), self.paused):
            found = self.old.messages(account)
            self.before[account] = {
                number: self.old.ask("GET", f"/admin/messages/{number}") for number in found
            }
        self.events = self.old.ask("GET", "/admin/events?after=0&limit=1000")["items"]

    # --- this one

    def migrate(self) -> None:
        done = self.new.run("migrate").strip()
        self.say(f"migrated: {' '.join(done.split())}")
        self.new.run("migrate", **self.place.fresh)
        ours, theirs = (schema(self.new, variables) for variables in ({}, self.place.fresh))
        lines = [
            f"  {sign} {line}"
            for sign, left, right in (("missing:", theirs, ours), ("extra:", ours, theirs))
            for line in sorted(left - right)
        ]
        expect(
            not lines,
            "the schema is not that of a new installation, a migration is missing:\n"
            + "\n".join(lines),
        )

    def take_over(self) -> None:
        new = self.new
        new.start(*PROCESSES, "notifier", "watcher")
        wait_until(new.ready, "this version to be ready")
        for address, account in self.mailboxes.items():
            self._await(new, account, self.place.sent[address], "failed")
        self.say("what waited is processed")
        self._compare()
        self._news(new, 2)
        for address, account in self.mailboxes.items():
            self._await(new, account, self.place.sent[address], "failed")
        new.ask("POST", f"/admin/messages/{self.failed}/retry")
        for address, account in self.mailboxes.items():
            self._await(new, account, self.place.sent[address])
        self.say("new mail has come, and what had failed is processed")
        expect(new.ask("GET", f"/admin/delete-jobs/{self.job}")["finished_at"], "no receipt")
        new.stop("scheduler", "poller")
        new.run("fsck", "--json")
        expect(not new.errors(), "\n".join(new.errors()[:5]))

    def _compare(self) -> None:
        accounts = {found["id"]: found for found in self.new.pages("/admin/email-accounts")}
        expect(accounts.keys() == {*self.mailboxes.values(), self.paused}, "accounts differ")
        expect(accounts[self.paused]["state"] == "paused", "the paused account is not paused")
        compared = 0
        for account, messages in self.before.items():
            expect(self.new.messages(account).keys() == messages.keys(), "messages differ")
            for number, was in messages.items():
                self._compare_message(number, was)
                compared += 1
        events = self.new.ask("GET", "/admin/events?after=0&limit=1000")["items"]
        expect(events[: len(self.events)] == self.events, "events differ")
        self.say(f"{compared} messages and {len(self.events)} events are what they were")

    def _compare_message(self, number: int, was: dict[str, Any]) -> None:
        now = self.new.ask("GET", f"/admin/messages/{number}")
        if was["status"] == "stored":
            expect(now["status"] == "processed", f"message {number} is {now['status']}")
            same = {"id", "account_id", "sha256", "size", "internal_date", "stored_at"}
        else:
            expect(now["status"] == was["status"], f"message {number} is {now['status']}")
            same = was.keys() - MOVING
        differing = {name for name in same if now.get(name) != was[name]}
        expect(not differing, f"message {number} has other {differing}")
        expect(self.new.raw_sha256(number) == was["sha256"], f"message {number} has other bytes")

    def go_back(self) -> None:
        """Let processes of the old version go on beside this one's, after the migration."""
        self.new.stop("worker")
        self.old.start("scheduler", "poller", "worker")
        self._news(self.new, 2)
        for address, account in self.mailboxes.items():
            self._await(self.new, account, self.place.sent[address])
        self.say("processes of the old version work on the new schema")


def _queued(url: str) -> int:
    """Entries of all queues."""
    client = redis.Redis.from_url(url)
    names = [key for key in client.scan_iter("*") if client.type(key) == b"list"]
    return sum(int(client.llen(name)) for name in names)


if __name__ == "__main__":
    main()
