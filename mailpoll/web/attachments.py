"""The attachments of a mailbox, whatever messages they came with."""

from typing import Any
from uuid import UUID

import falcon
from spectree import Response

from .. import attachments
from ..models import EmailAttachment, Scope
from . import paging, schemas
from .accounts import account_or_404
from .documents import MESSAGES, route, send


def _show(row: EmailAttachment) -> schemas.FoundAttachment:
    fields = {name: getattr(row, name) for name in schemas.Attachment.model_fields if name != "n"}
    message = row.message
    found = {
        "n": row.position,
        "message_id": message.id,
        "subject": message.subject,
        "from": message.from_addresses or [],
        "internal_date": message.internal_date,
    }
    return schemas.FoundAttachment.model_validate(fields | found)


class AttachmentList:
    @route(
        Scope.READ,
        query=schemas.AttachmentQuery,
        resp=Response(HTTP_200=schemas.AttachmentPage, HTTP_404=schemas.Problem),
        tags=[MESSAGES],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """List a mailbox's attachments, those that were stored last first"""
        account = account_or_404(account_id)
        query: schemas.AttachmentQuery = req.context.query
        found = attachments.find(
            account,
            query.limit + 1,
            before=paging.decode_id(query.cursor) if query.cursor else None,
            name=query.name,
            kind=query.type,
            min_size=query.min_size,
        )
        items = found[: query.limit]
        following = paging.encode(items[-1].id) if len(found) > query.limit else None
        send(resp, schemas.AttachmentPage(items=[_show(row) for row in items], next=following))


def install(app: "falcon.App[Any, Any]") -> None:
    app.add_route("/admin/email-accounts/{account_id:uuid}/attachments", AttachmentList())
