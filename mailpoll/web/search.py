"""Full-text search, and conversations."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

import falcon
from peewee import SQL, Tuple, fn
from spectree import Response

from .. import database, search
from ..models import AccountState, EmailAccount, EmailRawMessage, Scope
from ..settings import settings
from . import paging, problems, schemas
from .accounts import account_or_404
from .documents import SEARCH, route, send
from .messages import SUMMARY, marks_of, summary

#: Messages of a thread that are counted for a list.
COUNTED = 1_000


class Search:
    @route(
        Scope.READ,
        query=schemas.SearchQuery,
        resp=Response(HTTP_200=schemas.SearchPage, HTTP_404=schemas.Problem),
        tags=[SEARCH],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Search subjects, people, texts and names of attachments"""
        given: schemas.SearchQuery = req.context.query
        query = parsed(given.q)
        account = account_or_404(given.account) if given.account else None
        after = search.Place(*paging.decode_numbers(given.cursor, 4)) if given.cursor else None
        found = search.find(
            query, account, by_date=given.sort == "date", limit=given.limit, after=after
        )
        send(
            resp,
            schemas.SearchPage(
                items=hits(query, found.hits), next=found.next and paging.encode(*found.next)
            ),
        )


def parsed(q: str) -> search.Query:
    """A query, or a problem that says where it is wrong."""
    try:
        return search.parse(q)
    except search.QueryError as error:
        raise problems.field_problem("q", error.reason, error.offset) from None


def hits(query: search.Query, found: Sequence[search.Hit]) -> list[schemas.SearchHit]:
    """What is shown of hits; one that is gone by now is left out."""
    table = EmailRawMessage
    text = fn.SUBSTR(table.text_body, 1, settings().search_text)  # no more of it is indexed
    columns = (*SUMMARY, text.alias("text_body"), EmailAccount.uuid)
    with database.connected():
        query_rows = (
            table.select(*columns)
            .join(EmailAccount)
            .where(
                table.id.in_([hit.message_id for hit in found]),
                EmailAccount.state != AccountState.DELETING,
            )
        )
        rows = {row.id: row for row in query_rows}
    marks = marks_of(list(rows.values()))
    excerpts = search.Excerpts(query.needles(), settings().search_text)
    return [
        schemas.SearchHit(
            **summary(rows[hit.message_id], rows[hit.message_id].account.uuid, marks),
            score=hit.score,
            subject_pieces=_pieces(excerpts.whole(rows[hit.message_id].subject or "", "s_")),
            excerpt=_pieces(excerpts.best(rows[hit.message_id].text_body or "")),
        )
        for hit in found
        if hit.message_id in rows
    ]


def _pieces(pieces: Sequence[search.Piece]) -> list[schemas.Piece]:
    return [schemas.Piece(**asdict(piece)) for piece in pieces]


class ThreadItem:
    @route(
        Scope.READ,
        query=schemas.ListQuery,
        resp=Response(HTTP_200=schemas.Thread, HTTP_404=schemas.Problem),
        tags=[SEARCH],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, thread_id: int) -> None:
        """Show a conversation's messages, oldest first"""
        query: schemas.ListQuery = req.context.query
        table = EmailRawMessage
        with database.connected():
            number, uuid = _thread(thread_id)
            order = (table.internal_date, table.id)
            rows = table.select(*SUMMARY).where(table.thread_id == number)
            if query.cursor:
                last, last_id = paging.decode_moment(query.cursor)
                rows = rows.where(Tuple(*order) > (database.timestamp(last), last_id))
            found = list(rows.order_by(*order).limit(query.limit + 1))
        items = found[: query.limit]
        following = None
        if len(found) > query.limit:
            following = paging.encode(items[-1].internal_date, items[-1].id)
        marks = marks_of(items)
        page = [schemas.MessageSummary(**summary(row, uuid, marks)) for row in items]
        send(resp, schemas.Thread(id=number, account_id=uuid, items=page, next=following))


def _thread(thread_id: int) -> tuple[int, str]:
    """The number that a thread has now, and its account; it may have become part of another one.

    Raises:
      falcon.HTTPNotFound: there is none.
    """
    table = EmailRawMessage
    rows = (
        table.select(table.thread_id, EmailAccount.uuid)
        .join(EmailAccount)
        .where(EmailAccount.state != AccountState.DELETING, table.thread_id.is_null(False))
    )
    # A thread's number is the id of a message that belongs to it, wherever it belongs by now.
    found = rows.where(table.id == thread_id).tuples().first()
    found = found or rows.where(table.thread_id == thread_id).tuples().first()
    if found is None:
        raise problems.not_found("thread")
    return found  # type: ignore[no-any-return]


class ThreadList:
    @route(
        Scope.READ,
        query=schemas.ListQuery,
        resp=Response(HTTP_200=schemas.ThreadPage, HTTP_404=schemas.Problem),
        tags=[SEARCH],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """List a mailbox's conversations, by their newest message"""
        account = account_or_404(account_id)
        query: schemas.ListQuery = req.context.query
        with database.connected():
            found = _newest(account, query)
            items = found[: query.limit]
            counts = {row.thread_id: _count(row.thread_id) for row in items}
        following = None
        if len(found) > query.limit:
            following = paging.encode(items[-1].internal_date, items[-1].id)
        marks = marks_of(items)
        page = [
            schemas.ThreadSummary(
                id=row.thread_id,
                account_id=account.uuid,
                messages=counts[row.thread_id],
                newest=schemas.MessageSummary(**summary(row, account.uuid, marks)),
            )
            for row in items
        ]
        send(resp, schemas.ThreadPage(items=page, next=following))


def _newest(account: EmailAccount, query: schemas.ListQuery) -> list[Any]:
    """The newest messages of threads, one more than the page has room for."""
    table = EmailRawMessage
    order = (table.internal_date, table.id)
    later = table.alias()
    newer = later.select(SQL("1")).where(
        later.thread_id == table.thread_id,
        Tuple(later.internal_date, later.id) > Tuple(*order),
    )
    rows = table.select(*SUMMARY).where(
        table.account == account, table.thread_id.is_null(False), ~fn.EXISTS(newer)
    )
    if query.cursor:
        last, last_id = paging.decode_moment(query.cursor)
        rows = rows.where(Tuple(*order) < (database.timestamp(last), last_id))
    columns = (column.desc() for column in order)
    return list(rows.order_by(*columns).limit(query.limit + 1))


def _count(thread_id: int) -> int:
    table = EmailRawMessage
    some = table.select(SQL("1")).where(table.thread_id == thread_id).limit(COUNTED)
    return int(some.count())


def install(app: "falcon.App[Any, Any]") -> None:
    thread = f"/admin/threads/{{thread_id:int(min=1, max={paging.MAX_ID})}}"
    app.add_route("/admin/search", Search())
    app.add_route(thread, ThreadItem())
    app.add_route("/admin/email-accounts/{account_id:uuid}/threads", ThreadList())
