"""mailpoll beside its peers: the same mailboxes, in turns, each with a fresh state every time."""

import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import detail, proxy
from bench.contenders.celery import CeleryDesign
from bench.contenders.contender import Contender, Took, TooSlow
from bench.contenders.mailpoll import Mailpoll, MailpollProduction
from bench.contenders.mbsync import Mbsync, Mbsync8
from bench.contenders.offlineimap import Offlineimap
from bench.contenders.raw import Raw
from bench.contenders.serial import Serial
from bench.mailboxes import Mailboxes
from bench.results import Cell, Plot, Result, Table, shown

CONTENDERS: dict[str, type[Contender]] = {
    kind.name: kind
    for kind in (
        Raw,
        Mailpoll,
        MailpollProduction,
        Mbsync8,
        Mbsync,
        Serial,
        CeleryDesign,
        Offlineimap,
    )
}
PHASES = ("cold import", "nothing new", "one new mail")

TEXT = [
    "All contenders read the same {accounts} mailboxes with {messages:,} messages, {size:,.0f} MB "
    "(66 % text of 4 to 10 KB, 25 % alternative of 30 KB, 8 % with an attachment of 80 to 220 KB, "
    "1 % of 1.5 MB) from one Dovecot over TLS, in turns, each with a fresh state. Seconds are from "
    "the trigger, where it is a command of its own from its start, until all is there; medians of "
    "the rounds, with the least and the most. The CPU is that of the contender's own processes: "
    "not Dovecot's, nor PostgreSQL's, Redis's or SeaweedFS's, while the Valkey of mailpoll's "
    "embedded set counts.",
    "`raw` downloads everything over 16 connections and keeps nothing: the limit. `mbsync` is "
    "`mbsync -a`, `mbsync8` a process for each mailbox, eight at a time, `offlineimap` is "
    "offlineimap3 with eight accounts at once; both flush what they write to disk, which is their "
    "default. `serial` is the loop that everybody writes first: IMAPClient, files that nobody "
    "flushes, the standard library's parser. `celery` is the design that mailpoll replaces: a "
    "task for each message, which logs in, ten processes, Redis, PostgreSQL with flushes, raw "
    "files without. `mailpoll` is the embedded set, `mailpoll-production` has PostgreSQL with "
    "flushes, Redis and SeaweedFS. Only mailpoll, `celery` and `serial` parse the mail, and only "
    "mailpoll stores attachments.",
    "What was stored is compared with what was sent by SHA-256 (mailpoll, celery, serial) or "
    "counted (mbsync and offlineimap add a header; raw keeps nothing). A Python that was compiled "
    "without profile-guided optimisation, which Debian and the official images use, is 10 to 15 % "
    "slower.",
]
FAR = (
    "Distance is made by a TCP proxy that delays bytes and the handshake, and limits nothing: it "
    "carried {speed:.0f} MB/s here, for {cpu:.2f} ms of CPU a MB on the same cores, which is in "
    "nobody's figures."
)
BUSY = "Other programs took {usual:.0%} of the machine before a run, {most:.0%} at most."
LIMIT = "Contenders of which a phase took more than {limit:.0f} s were ended there."
SLOW = "Slow ones ({names}) ran in the first round only."
MISSING = "Not installed here: {names}."


@dataclass(slots=True)
class Runs:
    """The runs of one contender at one distance, a value in each list for each round."""

    took: dict[str, list[Took]] = field(default_factory=dict)
    #: Why the phase that comes next has no figures, nor any later one.
    ended: str = ""
    verified: int | None = None

    def add(self, phase: str, took: Took) -> None:
        self.took.setdefault(phase, []).append(took)

    def seconds(self, phase: str) -> float | None:
        found = self.took.get(phase)
        return statistics.median(one.seconds for one in found) if found else None

    def cpu(self, phase: str) -> float | None:
        found = self.took.get(phase)
        return statistics.median(one.cpu for one in found) if found else None


@dataclass(slots=True)
class Comparison:
    """What is compared, and what was found.

    Parameters:
      distances: round trips in milliseconds.
      limit: seconds that a phase may take.
    """

    mail: Mailboxes
    directory: Path
    names: Sequence[str]
    distances: Sequence[float]
    rounds: int
    seed: int
    limit: float
    runs: dict[tuple[str, float], Runs] = field(default_factory=dict)
    #: What other programs took of the machine before each run.
    busy: list[float] = field(default_factory=list)

    def run(self) -> None:
        for number in range(self.rounds):
            for distance in self.distances:
                names = [n for n in self.present() if number == 0 or not CONTENDERS[n].slow]
                random.Random(f"{self.seed} {number} {distance}").shuffle(names)
                for name in names:
                    self._run_one(number, name, distance)

    def present(self) -> list[str]:
        return [name for name in self.names if CONTENDERS[name].installed()]

    def _run_one(self, number: int, name: str, distance: float) -> None:
        runs = self.runs.setdefault((name, distance), Runs())
        if runs.ended:
            return
        # Nothing is removed meanwhile: ext4 looks for inodes that nobody removed of late, which
        # made files dear to those who came after.
        own = self.directory / f"{name}-{distance:g}-{number}"
        own.mkdir()
        os.sync()  # what the one before wrote is written
        self.busy.append(busy())
        with self.mail.at(distance) as (server, _), ExitStack() as stack:
            contender = stack.enter_context(CONTENDERS[name](server, own, self.limit))
            try:
                self._phases(contender, runs)
            except TooSlow:
                runs.ended = f"over {self.limit:.0f}"
            except RuntimeError as error:
                runs.ended = "failed"
                print(error, file=sys.stderr)
        took = [f"{runs.took[phase][-1].seconds:.2f} s" for phase in PHASES if phase in runs.took]
        print(f"{name:20} {distance:g} ms: {', '.join(took)} {runs.verified}", file=sys.stderr)

    def _phases(self, contender: Contender, runs: Runs) -> None:
        mail = self.mail
        runs.add(PHASES[0], contender.cold_import(len(mail.sent)))
        verified = contender.verified(mail.sent)
        os.sync()  # else the next flush would pay for what the import left to the kernel
        runs.add(PHASES[1], contender.poll(len(mail.sent)))
        with mail.news():
            runs.add(PHASES[2], contender.poll(len(mail.sent)))
            # One message too few in any of the runs shows.
            missing = max(len(mail.sent) - contender.verified(mail.sent), 0)
        verified -= missing
        runs.verified = verified if runs.verified is None else min(runs.verified, verified)

    # What it comes to

    def result(self, details: dict[str, "Details"]) -> Result:
        tables = [self._targets(details), *map(self._table, self.distances)]
        if details:
            tables += [_process_table(details), _detail_table(details)]
        return Result("Side by side", self._text(), tables, [self._plot(p) for p in PHASES])

    def _text(self) -> list[str]:
        mail = self.mail
        facts = {
            "accounts": len(mail.users),
            "messages": len(mail.sent),
            "size": mail.size / 1e6,
        }
        text = [paragraph.format(**facts) for paragraph in TEXT]
        if any(self.distances):
            speed, cpu = proxy.throughput()
            text.append(FAR.format(speed=speed, cpu=cpu))
        busy = {"usual": statistics.median(self.busy), "most": max(self.busy)}
        notes = [BUSY.format(**busy)]
        if any(runs.ended.startswith("over") for runs in self.runs.values()):
            notes.append(LIMIT.format(limit=self.limit))
        slow = [f"`{name}`" for name in self.present() if CONTENDERS[name].slow]
        if self.rounds > 1 and slow:
            notes.append(SLOW.format(names=", ".join(slow)))
        missing = [f"`{name}`" for name in self.names if name not in self.present()]
        if missing:
            notes.append(MISSING.format(names=", ".join(missing)))
        return [*text, " ".join(notes)]

    def _table(self, distance: float) -> Table:
        columns = ["contender", "cold import, s", "messages/s", "CPU ms/message"]
        columns += ["nothing new, s", "CPU ms/mailbox", "one new mail in each, s", "verified"]
        rows = [self._row(name, self.runs[name, distance]) for name in self.present()]
        return Table(f"{distance:g} ms to the server and back", columns, rows)

    def _row(self, name: str, runs: Runs) -> list[Cell]:
        messages, mailboxes = len(self.mail.sent), len(self.mail.users)
        seconds, cpu = runs.seconds(PHASES[0]), runs.cpu(PHASES[0])
        idle = runs.cpu(PHASES[1])
        return [
            name,
            self._spread(runs, PHASES[0]),
            messages / seconds if seconds else None,
            cpu / messages * 1_000 if cpu is not None else None,
            self._spread(runs, PHASES[1]),
            idle / mailboxes * 1_000 if idle is not None else None,
            self._spread(runs, PHASES[2]),
            runs.verified,
        ]

    def _spread(self, runs: Runs, phase: str) -> Cell:
        found = [took.seconds for took in runs.took.get(phase, [])]
        if not found and phase == next(other for other in PHASES if other not in runs.took):
            return runs.ended
        if len(found) < 2:
            return found[0] if found else None
        return f"{shown(statistics.median(found))} ({shown(min(found))} to {shown(max(found))})"

    def _plot(self, phase: str) -> Plot:
        names = self.present()
        series = {
            f"{distance:g} ms": [self.runs[name, distance].seconds(phase) for name in names]
            for distance in self.distances
        }
        title = f"{phase.capitalize()}, {len(self.mail.users)} mailboxes"
        file = f"compare-{phase.replace(' ', '-')}"
        return Plot(file, title, "bars", list(names), "", "seconds (less is better)", True, series)

    def _targets(self, details: dict[str, "Details"]) -> Table:
        rows: list[list[Cell]] = []
        for name in ("mailpoll", "mailpoll-production"):
            for distance in self.distances:
                rows += self._against_peers(name, distance)
            if name in details:
                rows += details[name].targets(name)
        return Table("Targets", ["", "target", "measured", "met"], rows)

    def _against_peers(self, name: str, distance: float) -> list[list[Cell]]:
        if (name, distance) not in self.runs:
            return []
        own = self.runs[name, distance]
        where = f"{name}, {distance:g} ms"
        rows = []
        for peer, factor, words in (
            ("mbsync8", 1.0, "cold import as long as mbsync8's, times"),
            ("celery", 0.1, "cold import as long as celery's, times"),
        ):
            if (peer, distance) not in self.runs:
                continue
            theirs = self.runs[peer, distance]
            slow = theirs.ended.startswith("over") and not theirs.took
            least = self.limit if slow else theirs.seconds(PHASES[0])
            mine = own.seconds(PHASES[0])
            ratio = mine / least if mine and least else None
            rows.append(_target(f"{where}: {words}", factor, ratio, exact=not slow))
        cpu = own.cpu(PHASES[0])
        if name == "mailpoll" and cpu is not None:
            spent = cpu / len(self.mail.sent) * 1_000
            rows.append(_target(f"{where}: CPU ms per message", 1.8, spent))
        if distance:
            rows.append(_target(f"{where}: nothing new, s", 1.5, own.seconds(PHASES[1])))
        soon = 3.0 if distance else 2.0
        rows.append(_target(f"{where}: one new mail in each, s", soon, own.seconds(PHASES[2])))
        return rows


def _target(what: str, most: float, measured: float | None, *, exact: bool = True) -> list[Cell]:
    """A row of the targets; what is not ``exact`` is less than ``measured``, who knows how much."""
    if measured is None:
        return [what, f"at most {most:g}", None, None]
    if not exact:
        met = "yes" if measured <= most else None
        return [what, f"at most {most:g}", f"under {shown(measured)}", met]
    return [what, f"at most {most:g}", measured, "yes" if measured <= most else "no"]


def busy(seconds: float = 1) -> float:
    """The share of all cores that is taken now."""
    before = os.times().elapsed, _idle()
    time.sleep(seconds)
    cores = (os.times().elapsed - before[0]) * (os.cpu_count() or 1)
    return max(0.0, 1 - (_idle() - before[1]) / cores)


def _idle() -> float:
    """Seconds for which cores had nothing to do or waited for disks."""
    fields = Path("/proc/stat").read_text().split(maxsplit=6)
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Details:
    """What was found of mailpoll alone with one backing set; milliseconds and MB."""

    basics: detail.Basics
    reads: detail.Reads
    scheduled_ms: float
    large_mb: dict[str, float]
    threads: int

    def targets(self, name: str) -> list[list[Cell]]:
        poller = 120 + 4 * self.threads
        p99 = self.reads.percentile(0.99) * 1_000
        return [
            _target(f"{name}: CPU ms per scheduled poll", 4, self.scheduled_ms),
            _target(f"{name}: API p99 during the import, ms", 100, p99),
            _target(f"{name}: poller's peak, MB", poller, self.large_mb.get("poller")),
            _target(f"{name}: worker's peak, MB", 150, self.large_mb.get("worker")),
        ]


def details(kind: type[Mailpoll], mail: Mailboxes, directory: Path, limit: float) -> Details:
    """Import with somebody reading from the API, watch the scheduler's polls, a large message."""
    directory.mkdir()
    os.sync()
    with mail.at(0) as (server, _), kind(server, directory, limit) as mailpoll:
        reads = detail.Reads()
        meanwhile = detail.requesting(detail.reads_of(mailpoll.api), reads)
        basics = detail.basics(mailpoll, mail, meanwhile)
        scheduled = detail.scheduled_polls(mailpoll) * 1_000
        large = {name: peak / 1e6 for name, peak in detail.large_message(mailpoll, mail).items()}
        return Details(basics, reads, scheduled, large, detail.POLLER_THREADS)


def _process_table(found: dict[str, Details]) -> Table:
    columns = ["process", *(f"{set_}: {what}" for set_ in found for what in ("CPU s", "peak MB"))]
    names = {name for one in found.values() for name in one.large_mb}
    servers = {name for one in found.values() for name in one.basics.servers_cpu}
    rows: list[list[Cell]] = []
    for name in sorted(names) + sorted(servers):
        row: list[Cell] = [name]
        for one in found.values():
            cpu = one.basics.cpu | one.basics.servers_cpu
            row += [cpu.get(name), one.large_mb.get(name)]
        rows.append(row)
    title = (
        "CPU of the cold import with ten requests a second to the API, and peak memory of the "
        "largest process of each kind, a message of 50 MB included"
    )
    return Table(title, columns, rows)


def _detail_table(found: dict[str, Details]) -> Table:
    reads = {
        f"API reads during the import, p{p}, ms": [
            one.reads.percentile(p / 100) * 1_000 for one in found.values()
        ]
        for p in (50, 95, 99)
    }
    rows = [
        *([name, *values] for name, values in reads.items()),
        ["API reads", *(sum(map(len, one.reads.seconds.values())) for one in found.values())],
        ["API reads that failed", *(one.reads.failed.total() for one in found.values())],
        ["CPU ms per scheduled poll, all in", *(one.scheduled_ms for one in found.values())],
    ]
    return Table("Meanwhile, 0 ms", ["", *found], rows)
