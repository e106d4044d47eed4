"""Legal holds: ``/hold`` of an account or a message, and the list of all."""

from typing import Any
from uuid import UUID

import falcon
from spectree import Response

from .. import holds
from ..models import EmailAccount, EmailRawMessage, Scope
from . import paging, problems, schemas
from .accounts import account_or_404, show_hold
from .documents import RETENTION, route, send
from .messages import message_or_404


def _set(
    req: falcon.Request,
    resp: falcon.Response,
    account: EmailAccount,
    message: EmailRawMessage | None = None,
) -> None:
    try:
        hold = holds.hold(account, req.context.json.reason, message)
    except LookupError as error:
        raise problems.not_found(str(error)) from None
    send(resp, show_hold(hold, account.uuid))


class AccountHold:
    @route(
        Scope.ADMIN,
        json=schemas.NewHold,
        resp=Response(HTTP_200=schemas.Hold, HTTP_404=schemas.Problem),
        tags=[RETENTION],
    )
    def on_put(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Let nothing of a mailbox be deleted, whatever its retention says"""
        _set(req, resp, account_or_404(account_id))

    @route(
        Scope.ADMIN,
        resp=Response("HTTP_204", HTTP_404=schemas.Problem),
        tags=[RETENTION],
    )
    def on_delete(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Lift the legal hold on a mailbox"""
        if not holds.lift(account_or_404(account_id)):
            raise problems.not_found("hold")
        resp.status = falcon.HTTP_204


class MessageHold:
    @route(
        Scope.ADMIN,
        json=schemas.NewHold,
        resp=Response(HTTP_200=schemas.Hold, HTTP_404=schemas.Problem),
        tags=[RETENTION],
    )
    def on_put(self, req: falcon.Request, resp: falcon.Response, message_id: int) -> None:
        """Let a message not be deleted, nor its mailbox"""
        message = message_or_404(message_id)
        _set(req, resp, message.account, message)

    @route(
        Scope.ADMIN,
        resp=Response("HTTP_204", HTTP_404=schemas.Problem),
        tags=[RETENTION],
    )
    def on_delete(self, req: falcon.Request, resp: falcon.Response, message_id: int) -> None:
        """Lift the legal hold on a message"""
        message = message_or_404(message_id)
        if not holds.lift(message.account, message):
            raise problems.not_found("hold")
        resp.status = falcon.HTTP_204


class HoldList:
    @route(
        Scope.READ,
        query=schemas.HoldQuery,
        resp=Response(HTTP_200=schemas.HoldPage),
        tags=[RETENTION],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List legal holds, newest first"""
        query: schemas.HoldQuery = req.context.query
        before = paging.decode_id(query.cursor) if query.cursor else None
        found = holds.listed(query.limit + 1, before)
        rows = found[: query.limit]
        following = paging.encode(rows[-1].id) if len(found) > query.limit else None
        items = [show_hold(row, row.account.uuid) for row in rows]
        send(resp, schemas.HoldPage(items=items, next=following))


def install(app: "falcon.App[Any, Any]") -> None:
    message = f"/admin/messages/{{message_id:int(min=1, max={paging.MAX_ID})}}"
    app.add_route("/admin/holds", HoldList())
    app.add_route("/admin/email-accounts/{account_id:uuid}/hold", AccountHold())
    app.add_route(f"{message}/hold", MessageHold())
