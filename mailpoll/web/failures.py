"""``/admin/messages`` of all mailboxes, and ``/admin/failed``: what could not be processed."""

from typing import Any

import falcon
from peewee import fn
from spectree import Response

from .. import database, queues, replay
from ..actors import process_message
from ..models import (
    UNFINISHED,
    AccountState,
    EmailAccount,
    EmailRawMessage,
    MessageStatus,
    Scope,
)
from . import paging, schemas
from .documents import MESSAGES, route, send
from .messages import SUMMARY, UNFINISHED_STATUSES, marks_of, summary

#: Reasons that are listed.
REASONS = 100
#: Messages enqueued again in one transaction, and in one request.
PAGE, MOST = 500, 5_000


class AllMessages:
    @route(
        Scope.READ,
        query=schemas.AllMessagesQuery,
        resp=Response(HTTP_200=schemas.AllMessagesPage),
        tags=[MESSAGES],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List the messages of all mailboxes, last stored first"""
        query: schemas.AllMessagesQuery = req.context.query
        table = EmailRawMessage
        rows = _of_accounts(table.select(*SUMMARY, EmailAccount.uuid, EmailAccount.address))
        if query.status:
            rows = rows.where(table.status == query.status)
        if query.status in UNFINISHED_STATUSES:
            rows = rows.where(UNFINISHED)
        if query.error is not None:
            rows = rows.where(
                UNFINISHED, table.status == MessageStatus.FAILED, table.error == query.error
            )
        if query.cursor:
            rows = rows.where(table.id < paging.decode_id(query.cursor))
        with database.connected():
            found = list(rows.order_by(table.id.desc()).limit(query.limit + 1))
        items = found[: query.limit]
        following = paging.encode(items[-1].id) if len(found) > query.limit else None
        marks = marks_of(items)
        page = [
            schemas.ListedMessage(
                **summary(row, row.account.uuid, marks), address=row.account.address
            )
            for row in items
        ]
        send(resp, schemas.AllMessagesPage(items=page, next=following))


def _of_accounts(rows: Any) -> Any:
    """Not of those that are being deleted."""
    return rows.join(EmailAccount).where(EmailAccount.state != AccountState.DELETING)


class FailedGroups:
    @route(Scope.READ, resp=Response(HTTP_200=schemas.FailedGroups), tags=[MESSAGES])
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List why messages failed, the most frequent reason first"""
        send(resp, schemas.FailedGroups(items=reasons()))


def reasons() -> list[schemas.FailedGroup]:
    """Why messages failed, the most frequent reason first."""
    table = EmailRawMessage
    amount = fn.COUNT(table.id)
    rows = table.select(
        fn.COALESCE(table.error, ""),
        amount,
        fn.COUNT(fn.DISTINCT(table.account)),
        fn.MAX(table.id),
    )
    rows = _of_accounts(rows).where(UNFINISHED, table.status == MessageStatus.FAILED)
    rows = rows.group_by(table.error).order_by(amount.desc(), fn.MAX(table.id).desc())
    with database.connected():
        found = list(rows.limit(REASONS).tuples())
    names = ("error", "messages", "accounts", "newest")
    return [schemas.FailedGroup(**dict(zip(names, row, strict=True))) for row in found]


class FailedRetry:
    @route(
        Scope.OPERATE,
        json=schemas.FailedRetry,
        resp=Response(HTTP_202=schemas.FailedRetried, HTTP_422=schemas.Problem),
        tags=[MESSAGES],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Process all messages again that failed for one reason"""
        asked: schemas.FailedRetry = req.context.json
        enqueued, more = 0, True
        while more and enqueued < MOST:
            ids = replay.for_reason(asked.error, PAGE)
            queues.offer_all(process_message, ids)
            enqueued += len(ids)
            more = len(ids) == PAGE
        resp.status = falcon.HTTP_202
        send(resp, schemas.FailedRetried(enqueued=enqueued, more=more))


def install(app: "falcon.App[Any, Any]") -> None:
    app.add_route("/admin/messages", AllMessages())
    app.add_route("/admin/failed", FailedGroups())
    app.add_route("/admin/failed/retry", FailedRetry())
