"""The database against itself: counters against rows, rows against each other.

Each comparison of sums is one statement, so that what commits meanwhile is in both or in neither.
"""

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

from .. import accounts, database, search
from ..models import (
    EmailAccount,
    EmailAccountDay,
    EmailAttachment,
    EmailFetchFailure,
    EmailFlag,
    EmailFolder,
    EmailJob,
    EmailLocation,
    EmailRawMessage,
    JobState,
    MessageStatus,
)
from ..sync.flag_rows import indexed
from .findings import Difference, Kind, Outcome, Repair

#: Rows read at once.
PAGE = 500
#: A message that has not been worked on for so long is stuck, a lease so long past its end is dead.
STUCK = timedelta(hours=1)

#: Seconds that a repair holds an account's lease.
HOLD = 300

DONE = Repair(Outcome.REPAIRED)

DANGLING = database.Statement("""
    SELECT l.id, f.name, l.uid FROM email_locations l JOIN email_folders f ON f.id = l.folder_id
    LEFT JOIN email_raw_messages m ON m.id = l.message_id
    WHERE f.account_id = ? AND l.id > ? AND (m.id IS NULL OR m.account_id <> f.account_id)
    ORDER BY l.id LIMIT ?
""")
PLACELESS = database.Statement("""
    SELECT m.id, m.storage_key FROM email_raw_messages m WHERE m.account_id = ? AND m.id > ?
    AND NOT EXISTS (SELECT 1 FROM email_locations l WHERE l.message_id = m.id)
    ORDER BY m.id LIMIT ?
""")
TWICE = database.Statement("""
    SELECT x.id, f.name, x.uid FROM email_fetch_failures x
    JOIN email_folders f ON f.id = x.folder_id
    JOIN email_locations l ON l.folder_id = x.folder_id AND l.uidvalidity = x.uidvalidity
        AND l.generation = x.generation AND l.uid = x.uid
    WHERE f.account_id = ? AND x.id > ? ORDER BY x.id LIMIT ?
""")
#: Places with what their flags, and the index, say.
FLAGGED = database.Statement("""
    SELECT l.id, f.name, l.uid, l.flags, l.labels, l.expunged_at IS NULL AND f.gone_at IS NULL
        AND l.uidvalidity = f.uidvalidity AND l.generation = f.generation
    FROM email_locations l JOIN email_folders f ON f.id = l.folder_id
    WHERE f.account_id = ? AND l.flags IS NOT NULL AND l.id > ? ORDER BY l.id LIMIT ?
""")
INDEXED = database.Statement("SELECT location_id, flag FROM email_flags WHERE location_id IN []")
EARLY = database.Statement("""
    SELECT m.id, m.storage_key, m.status FROM email_raw_messages m
    WHERE m.account_id = ? AND m.id > ? AND m.status <> 'processed'
    AND EXISTS (SELECT 1 FROM email_attachments a WHERE a.message_id = m.id)
    ORDER BY m.id LIMIT ?
""")
MISCOUNTED = database.Statement("""
    SELECT m.id, m.storage_key, m.attachment_count,
        (SELECT COUNT(*) FROM email_attachments a WHERE a.message_id = m.id)
    FROM email_raw_messages m
    WHERE m.account_id = ? AND m.id > ? AND m.status = 'processed' AND m.attachment_count <>
        (SELECT COUNT(*) FROM email_attachments a WHERE a.message_id = m.id)
    ORDER BY m.id LIMIT ?
""")
NOT_INDEXED = database.Statement("""
    SELECT m.id, m.storage_key FROM email_raw_messages m
    WHERE m.account_id = ? AND m.status = 'processed' AND m.id > ?
    AND (m.thread_id IS NULL OR NOT EXISTS (SELECT 1 FROM email_search s WHERE s.message_id = m.id))
    ORDER BY m.id LIMIT ?
""")
WAITING = database.Statement("""
    SELECT m.id, m.storage_key, m.stored_at FROM email_raw_messages m
    WHERE m.account_id = ? AND m.status = 'stored' AND m.stored_at < ?
    AND (m.next_attempt_at IS NULL OR m.next_attempt_at < ?) AND m.id > ?
    ORDER BY m.id LIMIT ?
""")
COUNTERS = """
    SELECT f.id, f.name, f.messages, f.bytes, f.expunged,
        COUNT(l.id), COALESCE(SUM(m.size), 0), COUNT(l.expunged_at)
    FROM email_folders f
    LEFT JOIN email_locations l ON l.folder_id = f.id AND l.uidvalidity = f.uidvalidity
        AND l.generation = f.generation
    LEFT JOIN email_raw_messages m ON m.id = l.message_id
    WHERE {which} = ? GROUP BY f.id, f.name, f.messages, f.bytes, f.expunged
"""
MISCOUNTING = database.Statement(
    COUNTERS.format(which="f.account_id")
    + """
    HAVING COUNT(l.id) <> f.messages OR COALESCE(SUM(m.size), 0) <> f.bytes
        OR COUNT(l.expunged_at) <> f.expunged
    ORDER BY f.id
"""
)
COUNT = database.Statement(COUNTERS.format(which="f.id"))
#: By how much the counters of each day exceed its rows; failures may, since they count events.
DAYS = """
    SELECT day, SUM(a), SUM(b), SUM(c), SUM(d), MIN(SUM(e), 0) FROM (
        SELECT day, messages AS a, bytes AS b, attachments AS c, attachment_bytes AS d,
            failures AS e
        FROM email_account_days WHERE account_id = ?
        UNION ALL
        SELECT {day}, -1, -m.size, 0, 0, CASE m.status WHEN 'failed' THEN -1 ELSE 0 END
        FROM email_raw_messages m WHERE m.account_id = ?
        UNION ALL
        SELECT {day}, 0, 0, -1, -t.size, 0
        FROM email_attachments t JOIN email_raw_messages m ON m.id = t.message_id
        WHERE m.account_id = ?
    ) AS both_sides
    GROUP BY day
    HAVING SUM(a) <> 0 OR SUM(b) <> 0 OR SUM(c) <> 0 OR SUM(d) <> 0 OR SUM(e) < 0
    ORDER BY day
"""
DAY_COLUMNS = ("messages", "bytes", "attachments", "attachment_bytes", "failures")
DUPLICATES = {
    "messages with the same content": """
        SELECT sha256, COUNT(*) FROM email_raw_messages WHERE account_id = ?
        GROUP BY sha256 HAVING COUNT(*) > 1""",
    "places with the same UID": """
        SELECT MIN(f.name), l.uid, COUNT(*) FROM email_locations l
        JOIN email_folders f ON f.id = l.folder_id WHERE f.account_id = ?
        GROUP BY l.folder_id, l.uidvalidity, l.generation, l.uid HAVING COUNT(*) > 1""",
    "attachments with the same position": """
        SELECT MIN(m.storage_key), a.position, COUNT(*) FROM email_attachments a
        JOIN email_raw_messages m ON m.id = a.message_id WHERE m.account_id = ?
        GROUP BY a.message_id, a.position HAVING COUNT(*) > 1""",
    "folders with the same name": """
        SELECT wire_name, COUNT(*) FROM email_folders WHERE account_id = ?
        GROUP BY wire_name HAVING COUNT(*) > 1""",
}


def check(account: EmailAccount) -> Iterator[Difference]:
    """Everything that the rows of one account contradict each other in.

    What repairs rows comes before the counters of these rows.
    """
    yield from _lease(account)
    yield from _places(account)
    yield from _flags(account)
    yield from _attachments(account)
    yield from _index(account)
    yield from _stuck(account)
    yield from _counters(account)
    yield from _days(account)
    yield from _duplicates(account)


def check_jobs() -> Iterator[Difference]:
    """Deletions that nobody works on."""
    table = EmailJob
    moment = database.now()
    with database.connected():
        jobs = list(
            table.select().where(
                table.state == JobState.RUNNING, table.lease_until < moment - STUCK
            )
        )
    for job in jobs:

        def mend(_: EmailAccount | None, job: EmailJob = job) -> Repair:
            with database.transaction():
                table.update(lease_until=None).where(
                    table.id == job.id, table.lease_until == job.lease_until
                ).execute()
            return Repair(Outcome.REPAIRED, "the next sweep resumes the deletion")

        detail = f"deletion of account {job.account_uuid}"
        yield Difference(Kind.LEASE_ENDED, detail=detail, mend=mend)


def _paged(statement: database.Statement, *parameters: Any) -> Iterator[tuple[Any, ...]]:
    """Rows of a statement that ends with ``id > ?`` and ``LIMIT ?``, id first."""
    for page in _pages(statement, *parameters):
        yield from page


def _pages(statement: database.Statement, *parameters: Any) -> Iterator[list[tuple[Any, ...]]]:
    """The same, page by page."""
    last = 0
    while True:
        with database.connected():
            page = statement.run(*parameters, last, PAGE).fetchall()
        yield page
        if len(page) < PAGE:
            return
        last = page[-1][0]


def _lease(account: EmailAccount) -> Iterator[Difference]:
    if account.lease_until and account.lease_until < database.now() - STUCK:
        # Taking the lease for the repair and giving it back is the repair.
        detail = f"it held until {account.lease_until:%Y-%m-%d %H:%M} UTC"
        yield Difference(Kind.LEASE_ENDED, account, detail=detail, mend=lambda _: DONE)


def _places(account: EmailAccount) -> Iterator[Difference]:
    for row_id, name, uid in _paged(DANGLING, account.id):

        def remove(held: EmailAccount | None, row_id: int = row_id) -> Repair:
            with database.transaction():
                EmailLocation.delete().where(EmailLocation.id == row_id).execute()
            return ask(held, "removed; the next poll fetches what the server has there")

        yield Difference(Kind.PLACE_WITHOUT_MESSAGE, account, name, uid, mend=remove)
    for _, key in _paged(PLACELESS, account.id):
        yield Difference(
            Kind.MESSAGE_WITHOUT_PLACE, account, key=key, mend=lambda held: ask(held, ASKED)
        )
    for row_id, name, uid in _paged(TWICE, account.id):

        def forget(_: EmailAccount | None, row_id: int = row_id) -> Repair:
            with database.transaction():
                EmailFetchFailure.delete().where(EmailFetchFailure.id == row_id).execute()
            return DONE

        yield Difference(Kind.VERDICT_TWICE, account, name, uid, mend=forget)


def _flags(account: EmailAccount) -> Iterator[Difference]:
    """Flags of places against the index that finds places by them."""
    for page in _pages(FLAGGED, account.id):
        with database.connected():
            rows = INDEXED.run([row[0] for row in page]).fetchall()
        found: dict[int, set[str]] = {}
        for place_id, flag in rows:
            found.setdefault(place_id, set()).add(flag)
        for place_id, name, uid, *marks, present in page:
            flags, labels = map(EmailLocation.flags.python_value, marks)
            wanted = indexed(flags, labels) if present else set()
            if found.get(place_id, set()) != wanted:
                mend = partial(_compare_flags, place_id)
                yield Difference(Kind.FLAGS, account, name, uid, mend=mend)


def _compare_flags(place_id: int, _: EmailAccount | None) -> Repair:
    """Let the flags of a place be unknown, and all of its folder be compared."""
    place = EmailLocation
    with database.transaction():
        EmailFlag.delete().where(EmailFlag.location == place_id).execute()
        row = place.get_or_none(place.id == place_id)
        if row is not None:
            place.update(flags=None).where(place.id == place_id).execute()
            EmailFolder.update(modseq=None, flags_cursor=None).where(
                EmailFolder.id == row.folder_id
            ).execute()
    return Repair(Outcome.REPAIRED, "polls that follow flags ask for them again")


ASKED = "the next poll compares the server's whole list"


def ask(account: EmailAccount | None, what: str) -> Repair:
    """Let the next poll do it, if there is to be one."""
    assert account is not None
    if account.state != "active":
        return Repair(Outcome.LEFT, f"the account is {account.state}, and polls repair this")
    accounts.expect_reconcile(account)
    return Repair(Outcome.ASKED, what)


def _attachments(account: EmailAccount) -> Iterator[Difference]:
    table, message = EmailAttachment, EmailRawMessage
    for row_id, key, status in _paged(EARLY, account.id):

        def remove(_: EmailAccount | None, row_id: int = row_id) -> Repair:
            unprocessed = message.select(message.id).where(
                message.id == row_id, message.status != MessageStatus.PROCESSED
            )
            with database.transaction():
                table.delete().where(table.message.in_(unprocessed)).execute()
            return DONE

        yield Difference(Kind.ATTACHMENTS_EARLY, account, key=key, detail=status, mend=remove)
    for row_id, key, told, counted in _paged(MISCOUNTED, account.id):
        yield Difference(
            Kind.ATTACHMENTS_COUNT,
            account,
            key=key,
            detail=f"{told} told, {counted} there",
            mend=partial(process_again, row_id),
        )


def process_again(message_id: int, _: EmailAccount | None) -> Repair:
    """Make a processed message ``stored``, so that its attachments are taken from it anew."""
    table, attachment = EmailRawMessage, EmailAttachment
    with database.transaction():
        changed = (
            table.update(
                status=MessageStatus.STORED,
                attempts=0,
                processed_at=None,
                attachment_count=0,
                next_attempt_at=database.now(),
            )
            .where(table.id == message_id, table.status == MessageStatus.PROCESSED)
            .execute()
        )
        if changed:
            message = table.get_by_id(message_id)
            sizes = [row.size for row in attachment.select().where(attachment.message == message)]
            attachment.delete().where(attachment.message == message).execute()
            EmailAccountDay.add(
                message.account_id,
                message.internal_date.date().isoformat(),
                attachments=-len(sizes),
                attachment_bytes=-sum(sizes),
            )
    return Repair(Outcome.ASKED, "the next sweep has it processed anew")


def _index(account: EmailAccount) -> Iterator[Difference]:
    for row_id, key in _paged(NOT_INDEXED, account.id):

        def index(_: EmailAccount | None, row_id: int = row_id) -> Repair:
            search.index_stored([row_id])
            return DONE

        yield Difference(Kind.NOT_INDEXED, account, key=key, mend=index)
    for place in search.leftovers(account.id):

        def forget(_: EmailAccount | None, place: int = place) -> Repair:
            search.forget_leftover(place)
            return DONE

        detail = f"entry {place}"
        yield Difference(Kind.INDEX_LEFTOVER, account, detail=detail, mend=forget)


def _stuck(account: EmailAccount) -> Iterator[Difference]:
    before = database.timestamp(database.now() - STUCK)
    for row_id, key, since in _paged(WAITING, account.id, before, before):

        def hurry(_: EmailAccount | None, row_id: int = row_id) -> Repair:
            table = EmailRawMessage
            with database.transaction():
                table.update(next_attempt_at=database.now()).where(
                    table.id == row_id, table.status == MessageStatus.STORED
                ).execute()
            return Repair(Outcome.REPAIRED, "the next sweep enqueues it")

        detail = f"since {str(since)[:16]}"
        yield Difference(Kind.STUCK, account, key=key, detail=detail, mend=hurry)


def _counters(account: EmailAccount) -> Iterator[Difference]:
    with database.connected():
        found = MISCOUNTING.run(account.id).fetchall()
    for folder_id, name, *numbers in found:

        def recount(held: EmailAccount | None, folder_id: int = folder_id) -> Repair:
            assert held is not None
            with database.transaction():
                held.keep(HOLD)  # polls add to the numbers that they have read before
                messages, size, expunged = map(int, COUNT.run(folder_id).fetchone()[5:])
                # Without UIDNEXT the next poll opens the folder and proves it again.
                EmailFolder.update(
                    messages=messages, bytes=size, expunged=expunged, uidnext=None
                ).where(EmailFolder.id == folder_id).execute()
            return DONE

        told, counted = numbers[:3], [int(number) for number in numbers[3:]]
        detail = _differing(("messages", "bytes", "expunged"), told, counted)
        yield Difference(Kind.COUNTERS, account, name, detail=detail, mend=recount)


def _differing(names: tuple[str, ...], told: list[int], counted: list[int]) -> str:
    triples = zip(names, told, counted, strict=True)
    return ", ".join(f"{name} {one}, rows {other}" for name, one, other in triples if one != other)


def _days(account: EmailAccount) -> Iterator[Difference]:
    for day, *excess in _excesses(account):

        def recount(held: EmailAccount | None, day: str = day) -> Repair:
            assert held is not None
            with database.transaction():
                held.keep(HOLD)  # two such repairs at once would both subtract
                for other, *excess in _excesses(account):
                    if other == day:
                        amounts = {
                            name: -by for name, by in zip(DAY_COLUMNS, excess, strict=True) if by
                        }
                        EmailAccountDay.add(account.id, day, **amounts)
            return DONE

        detail = ", ".join(
            f"{name} {by:+}" for name, by in zip(DAY_COLUMNS, excess, strict=True) if by
        )
        yield Difference(Kind.DAY, account, detail=f"{day}: {detail}", mend=recount)


def _excesses(account: EmailAccount) -> list[Any]:
    if database.is_sqlite():
        sql = DAYS.format(day="substr(m.internal_date, 1, 10)")
    else:
        sql = DAYS.format(day="to_char(m.internal_date AT TIME ZONE 'UTC', 'YYYY-MM-DD')")
        sql = sql.replace("MIN(SUM(e), 0)", "LEAST(SUM(e), 0)")
    with database.connected():
        rows = database.Statement(sql).run(account.id, account.id, account.id).fetchall()
    return [(day, *map(int, excess)) for day, *excess in rows]


def _duplicates(account: EmailAccount) -> Iterator[Difference]:
    for what, sql in DUPLICATES.items():
        with database.connected():
            rows = database.Statement(sql).run(account.id).fetchall()
        for *key, number in rows:
            detail = f"{number} {what}: {' '.join(map(str, key))}"
            yield Difference(
                Kind.DUPLICATE,
                account,
                detail=detail,
                reason="a unique index is broken or missing: see the documentation",
            )
