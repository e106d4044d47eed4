"""Find messages: the newest hits by the index alone, ranked by what their heads have of the query.

Both databases answer one question only, which messages have these words, newest first; ranks are
made here, so they are the same. What a search costs is bounded: it ranks the newest ``RANKED``
hits, and older ones follow by date.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from .. import database
from ..models import AccountState, EmailAccount, EmailFlag, EmailFolder
from . import document
from .index import moment_of, place_of
from .query import And, Filter, Node, Not, Or, Query, Words

#: The newest hits, which are ranked; fewer where each candidate's places must be looked up, or, of
#: phrases, its words be read.
RANKED, RANKED_PLACES, RANKED_PHRASES = 2_000, 500, 100
#: Messages that are looked at one by one, when some condition leaves no more than so many.
FEW = 1_000
#: Greater than every place.
END = 2**63 - 1

#: PostgreSQL is asked for the newest months first, so many at a time, and for the rest at last: so
#: that of a word that is everywhere it reads only as many rows as are wanted. Only months that have
#: mail are asked for, and those to come (mail has any date) together with the present one.
MONTHS = (1, 5, 24)
#: Months to come that are asked for one by one.
FUTURE = 60
#: Filters on words cost reading the words, of which PostgreSQL's planner knows nothing.
PLANS = database.Statement("""
    SELECT set_config('enable_seqscan', 'off', TRUE), set_config('enable_indexscan', 'off', TRUE),
        set_config('plan_cache_mode', 'force_custom_plan', TRUE)
""")

#: What a word counts for, by the best place where it stands. In the text alone: nothing.
WEIGHTS = {document.SUBJECT: 4, document.FROM: 3, document.NAME: 2, document.TO: 1}

#: The number that a thread has now: its old one is that of a message.
THREAD = "COALESCE((SELECT thread_id FROM email_raw_messages WHERE id = ?), ?)"
#: Where a message lies at its server now.
PRESENT = """
    SELECT 1 FROM email_locations l JOIN email_folders f ON f.id = l.folder_id
    WHERE l.message_id = s.message_id AND l.expunged_at IS NULL AND f.gone_at IS NULL
        AND l.uidvalidity = f.uidvalidity AND l.generation = f.generation
"""
#: One of these places has one of two flags, as the index has them.
FLAGGED = "SELECT 1 FROM email_flags g WHERE g.message_id = s.message_id AND g.flag IN (?, ?)"

#: Messages among which all are that fulfil a condition, to be asked with a limit.
OF_FLAGS = "SELECT message_id FROM email_flags WHERE flag IN (?, ?)"
OF_FOLDERS = """
    SELECT l.message_id FROM email_folders f JOIN email_locations l ON l.folder_id = f.id
    WHERE f.name IN []
"""
OF_SIZE = "SELECT message_id FROM email_search WHERE size > ?"
OF_THREAD = f"SELECT id FROM email_raw_messages WHERE thread_id = {THREAD}"  # noqa: S608
#: Those with a place that is empty, or in a folder that is gone or whose numbers began anew.
OF_EMPTY = """
    SELECT message_id FROM email_locations WHERE expunged_at IS NOT NULL
    UNION ALL SELECT l.message_id FROM email_folders f JOIN email_locations l ON l.folder_id = f.id
    WHERE f.gone_at IS NOT NULL OR f.restarted_at IS NOT NULL OR f.uidvalidity IS NULL
"""


class Place(NamedTuple):
    """Where a page of results ends.

    Parameters:
      score: of the last hit; -1 when it was not ranked any more.
      id: of the last hit.
      floor, top: of the hits that are ranked: what comes in later does not change their order.
    """

    score: int
    id: int
    floor: int
    top: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that was found.

    Parameters:
      score: what its head has of the query; 0 if only its text has it, or results are by date.
    """

    place: int
    message_id: int
    score: int = 0


@dataclass(frozen=True, slots=True)
class Results:
    """A page of hits, and where the next one begins; ``None`` on the last."""

    hits: list[Hit]
    next: Place | None


def find(
    query: Query, account: EmailAccount | None, *, by_date: bool, limit: int, after: Place | None
) -> Results:
    """A page of the messages that a query asks for.

    Parameters:
      account: only in this one; ``None`` is all.
      by_date: newest first; else the best first, and the newest first among equals.
      limit: hits at most.
      after: where the page before ended.
    """
    with database.connected():
        search, needles = _Search(query, account), query.needles()
        if by_date or not needles:
            return _by_date(search, limit, after.id if after else END)
        return _ranked(search, needles, limit, after)


def _by_date(search: "_Search", limit: int, before: int) -> Results:
    hits = list(search.run(limit + 1, 0, before))
    page = [hit for hit, _ in hits[:limit]]
    more = len(hits) > limit
    return Results(page, Place(-1, page[-1].place, 0, 0) if more else None)


def _ranked(
    search: "_Search", needles: Sequence[Words], limit: int, after: Place | None
) -> Results:
    if after and after.score < 0:
        return _by_date(search, limit, after.id)
    floor, top = (after.floor, after.top) if after else (0, END)
    ranking = search.ranking
    found = list(search.run(ranking if after is None else 2 * ranking, floor, top))
    if not found:
        return Results([], None)
    if after is None:
        top = found[0][0].place + 1
        floor = found[-1][0].place if len(found) == ranking else 0
    ranked = [Hit(hit.place, hit.message_id, _score(head, needles)) for hit, head in found]
    ranked.sort(key=lambda hit: (-hit.score, -hit.place))
    if after:
        last = (-after.score, -after.id)
        ranked = [hit for hit in ranked if (-hit.score, -hit.place) > last]
    page = ranked[:limit]
    if len(ranked) > limit:
        return Results(page, Place(page[-1].score, page[-1].place, floor, top))
    if not floor:
        return Results(page, None)
    older = _by_date(search, limit - len(page), floor) if len(page) < limit else None
    if older is None:
        return Results(page, Place(-1, floor, 0, 0))
    return Results([*page, *older.hits], older.next)


def _score(head: str, needles: Sequence[Words]) -> int:
    return sum(
        max((weight for mark, weight in WEIGHTS.items() if _has(head, needle, mark)), default=0)
        for needle in needles
    )


def _has(head: str, needle: Words, mark: str) -> bool:
    """Whether a field that is asked has all of the words."""
    if needle.mark not in ("", mark):
        return False
    last = len(needle.words) - 1
    return all(
        f" {mark}{word}{'' if needle.prefix and position == last else ' '}" in head
        for position, word in enumerate(needle.words)
    )


# The databases


class _Search:
    """A query as SQL: the hits between two places, newest first."""

    def __init__(self, query: Query, account: EmailAccount | None) -> None:
        self._node = query.node
        if account is not None:
            mine = Words((document.of_account(account.id),))
            self._node = And((mine, query.node)) if query.node else mine
        #: How many hits are ranked.
        self.ranking = _ranking(query)
        self._conditions: list[str] = []
        self._values: list[Any] = []
        self._low, self._high = 0, END
        if account is None:
            self._leave_out_deleted()
        for one in query.filters:
            self._filter(one)
        #: The only messages that can be hits, where these are few.
        self._few = _few(query.filters)

    def run(self, limit: int, low: int, before: int) -> Iterator[tuple[Hit, str]]:
        """Hits and their heads: those from ``low`` on and before ``before``."""
        low, before = max(low, self._low), min(before, self._high)
        if low >= before:
            return
        if self._few is not None:
            yield from self._rows(*self._among(self._few), low, before, limit)
            return
        if database.is_sqlite():
            yield from self._rows(*self._sqlite(), low, before, limit)
            return
        loose = _loose(self._node) if self._node else None
        if loose is None or not _positive(loose):
            yield from self._rows(*self._by_place(), low, before, limit)
            return
        for months, lower, upper in _windows(low, before):
            with _plans():
                page = self._rows(*self._by_words(loose, months), lower, upper, limit)
            yield from page
            limit -= len(page)
            if not limit:
                return

    def _rows(
        self, sql: str, values: list[Any], low: int, before: int, limit: int
    ) -> list[tuple[Hit, str]]:
        bounds = (low, before - 1)
        values = [value for one in values for value in (bounds if one is _BOUNDS else (one,))]
        rows = database.Statement(sql).run(*values, limit).fetchall()
        return [(Hit(place, message_id), head) for place, message_id, head in rows]

    def _among(self, ids: list[int]) -> tuple[str, list[Any]]:
        """Some messages, one by one, by which each database can look words up in its own way."""
        # + 0: not by the order of places, in which it would go through all messages.
        conditions = ["s.message_id IN []", "s.id + 0 BETWEEN ? AND ?", *self._conditions]
        values: list[Any] = [ids, _BOUNDS, *self._values]
        table = "email_search s"
        if self._node is not None and not database.is_sqlite():
            conditions.append("s.words @@ ?::tsquery")
            values.append(_tsquery(self._node))
        elif self._node is not None and _has_prefix(self._node):
            # Of a beginning of words FTS5 makes one list anew whenever it is asked.
            conditions.append(FOUND)
            values.append(_fts5(self._node))
        elif self._node is not None and _positive(self._node):
            table += " CROSS JOIN email_search_index ON email_search_index.rowid = s.id"
            conditions.append("email_search_index MATCH ?")
            values.append(_fts5(self._node))
        elif self._node is not None:
            conditions.append(NOT_FOUND)
            values.append(_fts5(_opposite(self._node)))
        where = " AND ".join(conditions)
        columns = "s.id, s.message_id, s.head"
        sql = f"SELECT {columns} FROM {table} WHERE {where} ORDER BY s.id DESC LIMIT ?"  # noqa: S608
        return sql, values

    def _sqlite(self) -> tuple[str, list[Any]]:
        conditions = "".join(f" AND {one}" for one in self._conditions)
        columns = "SELECT s.id, s.message_id, s.head FROM"
        if self._node is None or not _positive(self._node):
            words, values = "", [_BOUNDS, *self._values]
            if self._node is not None:
                words = f" AND {NOT_FOUND}"
                values.append(_fts5(_opposite(self._node)))
            sql = f"{columns} email_search s WHERE s.id BETWEEN ? AND ?{conditions}{words}"
            return f"{sql} ORDER BY s.id DESC LIMIT ?", values
        # CROSS: the index first, which has the order of the results.
        sql = f"""{columns} email_search_index
            CROSS JOIN email_search s ON s.id = email_search_index.rowid
            WHERE email_search_index MATCH ? AND email_search_index.rowid BETWEEN ? AND ?
            {conditions} ORDER BY email_search_index.rowid DESC LIMIT ?"""
        return sql, [_fts5(self._node), _BOUNDS, *self._values]

    def _by_place(self) -> tuple[str, list[Any]]:
        """PostgreSQL, without any word to look for: row by row."""
        where = " AND ".join(["s.id BETWEEN ? AND ?", *self._conditions])
        values: list[Any] = [_BOUNDS, *self._values]
        if self._node is not None:
            where += " AND s.words @@ ?::tsquery"
            values.append(_tsquery(self._node))
        columns = "s.id, s.message_id, s.head"
        sql = f"SELECT {columns} FROM email_search s WHERE {where} ORDER BY s.id DESC LIMIT ?"  # noqa: S608
        return sql, values

    def _by_words(self, loose: Node, months: Sequence[int]) -> tuple[str, list[Any]]:
        """PostgreSQL, by the index of words.

        Parameters:
          loose: without the order of words, which is looked at afterwards, and then of the newest
            only: for that alone the words of a row are read.
          months: where to look; empty is anywhere.
        """
        columns = "SELECT s.id, s.message_id, s.head"
        where = " AND ".join(
            ["s.words @@ ?::tsquery", "s.id + 0 BETWEEN ? AND ?", *self._conditions]
        )
        spans = tuple(Words((document.of_month(month),)) for month in months)
        sought = And((loose, Or(spans))) if spans else loose
        values = [_tsquery(sought), _BOUNDS, *self._values]
        # OFFSET 0: no condition moves from outside to inside, or the other way.
        inner = f"{columns}, s.words FROM email_search s WHERE {where}"
        if loose == self._node:
            return f"{columns} FROM ({inner} OFFSET 0) s ORDER BY s.id DESC LIMIT ?", values
        values.append(_tsquery(self._node))  # type: ignore[arg-type]
        inner += " ORDER BY s.id DESC OFFSET 0"
        sql = f"{columns} FROM ({inner}) s WHERE s.words @@ ?::tsquery ORDER BY s.id DESC LIMIT ?"
        return sql, values

    # Conditions on rows

    def _leave_out_deleted(self) -> None:
        table = EmailAccount
        gone = table.select(table.id).where(table.state == AccountState.DELETING).tuples()
        self._where("s.account_id NOT IN", [account_id for (account_id,) in gone])

    def _filter(self, one: Filter) -> None:
        value = one.value
        match one.name:
            case "after" | "before":
                assert isinstance(value, datetime)
                # "not before" is "after".
                self._bound(place_of(value), upper=(one.name == "before") != one.negated)
            case "larger" | "smaller":
                sign = {"larger": ">", "smaller": "<"}[one.name]
                self._add(f"s.size {sign} ?", one.negated, value)
            case "in":
                names = _folders(str(value))
                marks = ", ".join("?" * len(names)) or "NULL"
                self._add(f"EXISTS ({PRESENT} AND f.name IN ({marks}))", one.negated, *names)
            case "is" if value == "imported":
                rows = "SELECT 1 FROM email_raw_messages m WHERE m.id = s.message_id AND m.imported"
                self._add(f"EXISTS ({rows})", one.negated)
            case "is":
                self._add(f"EXISTS ({PRESENT})", not one.negated)
            case "flag":
                flag = EmailFlag.of_flag(str(value))
                self._add(f"EXISTS ({FLAGGED})", one.negated, flag, flag)
            case "label":
                self._add(f"EXISTS ({FLAGGED})", one.negated, *_marks(str(value)))
            case "thread":
                self._add(f"s.message_id IN ({OF_THREAD})", one.negated, value, value)

    def _bound(self, place: int, *, upper: bool) -> None:
        if upper:
            self._high = min(self._high, place)
        else:
            self._low = max(self._low, place)

    def _add(self, condition: str, negated: bool, *values: Any) -> None:
        self._conditions.append(f"NOT ({condition})" if negated else condition)
        self._values += values

    def _where(self, condition: str, values: list[Any]) -> None:
        if values:
            self._add(f"{condition} ({', '.join('?' * len(values))})", False, *values)


#: A row of SQLite's index has the words, or none has.
FOUND = "s.id IN (SELECT rowid FROM email_search_index WHERE email_search_index MATCH ?)"
NOT_FOUND = FOUND.replace(" IN ", " NOT IN ", 1)
#: Stands among values for the two places.
_BOUNDS = object()

NEWEST = database.Statement("SELECT MAX(id) FROM email_search WHERE id BETWEEN ? AND ?")


@contextmanager
def _plans() -> Iterator[None]:
    """Let PostgreSQL look words up in their index, whatever it believes that costs."""
    with database.proxy.atomic():
        PLANS.run()
        yield


def _windows(low: int, before: int) -> Iterator[tuple[Sequence[int], int, int]]:
    """Months, newest first, with the places between which they are looked at; then the rest."""
    present = document.month_of(database.now())
    sizes = iter(MONTHS)
    size, window = next(sizes), list[int]()
    for month in _months(low, before):
        window.append(month)
        if len(window) == FUTURE or sum(one <= present for one in window) == size:
            yield window, low, before
            end, size, window = month, next(sizes, 0), []
            if not size:
                yield (), low, _begin_of(end)
                return
    if window:
        yield window, low, before


def _months(low: int, before: int) -> Iterator[int]:
    """The months between two places that have any message, newest first."""
    while before > low:
        (newest,) = NEWEST.run(low, before - 1).fetchone()
        if newest is None:
            return
        month = document.month_of(moment_of(newest))
        yield month
        before = _begin_of(month)


def _begin_of(month: int) -> int:
    return place_of(datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC))


def _ranking(query: Query) -> int:
    if query.node is not None and _loose(query.node) != query.node:
        return RANKED_PHRASES
    looked_up = any(one.name in ("in", "is", "flag", "label") for one in query.filters)
    return RANKED_PLACES if looked_up else RANKED


def _few(filters: Sequence[Filter]) -> list[int] | None:
    """The messages that fulfil the first condition which few fulfil; ``None``: there is none."""
    for one in filters:
        sql, *values = _source(one)
        if sql and not one.negated:
            found = database.Statement(f"{sql} LIMIT ?").run(*values, FEW + 1).fetchall()
            if len(found) <= FEW:
                return sorted({message_id for (message_id,) in found})
    return None


def _source(one: Filter) -> tuple[Any, ...]:
    """Where the messages of a condition are to be had alone, and its values; '': nowhere."""
    value = one.value
    found: tuple[Any, ...] = ("",)
    match one.name:
        case "flag":
            found = OF_FLAGS, value, value
        case "label":
            found = OF_FLAGS, *_marks(str(value))
        case "in":
            found = OF_FOLDERS, _folders(str(value))
        case "larger":
            found = OF_SIZE, value
        case "thread":
            found = OF_THREAD, value, value
        case "is" if value == "expunged":
            found = (OF_EMPTY,)
    return found


def _marks(label: str) -> tuple[str, str]:
    """What finds a keyword, and one of Gmail's labels, of this name."""
    return EmailFlag.of_flag(label), EmailFlag.of_label(label)


def _folders(name: str) -> list[str]:
    """The names of folders that are called so, in any case, or by their special use (RFC 6154)."""
    table = EmailFolder
    wanted = name.casefold()
    rows = table.select(table.name, table.special_use).distinct().tuples()
    return list(
        dict.fromkeys(
            found
            for found, use in rows
            if found.casefold() == wanted or (use or "").casefold() == f"\\{wanted}"
        )
    )


# Words


def _positive(node: Node) -> bool:
    """Whether a message must have some word, by which it can be looked for."""
    match node:
        case Words():
            return True
        case Not():
            return False
        case And(items):
            return any(map(_positive, items))
        case Or(items):
            return all(map(_positive, items))


def _has_prefix(node: Node) -> bool:
    """Whether some word is only the beginning of what is looked for."""
    match node:
        case Words(prefix=prefix):
            return prefix
        case Not(item):
            return _has_prefix(item)
        case And(items) | Or(items):
            return any(map(_has_prefix, items))


def _opposite(node: Node) -> Node:
    """What is not found by a node, which asks for no word: so that this one does."""
    match node:
        case Not(item):
            return item
        case And(items):
            return Or(tuple(map(_opposite, items)))
        case Or(items):
            return And(tuple(_opposite(item) for item in items))
        case Words():
            return Not(node)


def _loose(node: Node) -> Node | None:
    """The same without the order of words: what has more, and can be told by an index alone."""
    match node:
        case Words(words=(_,)):
            return node
        case Words(words, mark, prefix):
            single = [Words((word,), mark) for word in words[:-1]]
            return And((*single, Words(words[-1:], mark, prefix)))
        case Not(item):
            return node if _loose(item) == item else None
        case And(items):
            kept = tuple(one for one in map(_loose, items) if one is not None)
            return And(kept) if kept else None
        case Or(items):
            loosened = tuple(map(_loose, items))
            kept = tuple(one for one in loosened if one is not None)
            return Or(kept) if len(kept) == len(items) else None


def _fts5(node: Node) -> str:
    """A query of FTS5. Words are letters, digits and "_", so there is nothing to escape."""
    match node:
        case Words():
            return f'"{" ".join(node.stored)}"{" *" if node.prefix else ""}'
        case Or(items):
            return f"({' OR '.join(map(_fts5, items))})"
        case Not(item):
            return f"({document.ALL} NOT {_fts5(item)})"
        case And(items):
            wanted = [one for one in items if not isinstance(one, Not)]
            absent = [one.item for one in items if isinstance(one, Not)]
            found = " AND ".join(map(_fts5, wanted)) or document.ALL
            if not absent:
                return f"({found})"
            return f"(({found}) NOT ({' OR '.join(map(_fts5, absent))}))"


def _tsquery(node: Node) -> str:
    """A literal of PostgreSQL's tsquery."""
    match node:
        case Words():
            *before, last = (f"'{word}'" for word in node.stored)
            return f"({' <-> '.join([*before, last + ':*' * node.prefix])})"
        case Or(items):
            return f"({' | '.join(map(_tsquery, items))})"
        case Not(item):
            return f"!{_tsquery(item)}"
        case And(items):
            return f"({' & '.join(map(_tsquery, items))})"
