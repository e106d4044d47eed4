"""Stored mail: lists, whole messages, raw bytes, attachments, replay."""

from typing import Any
from uuid import UUID

import falcon
from spectree import Response

from .. import accounts, database, queues, runtime
from ..actors import process_message
from ..models import (
    AccountState,
    EmailAccount,
    EmailAttachment,
    EmailFolder,
    EmailLocation,
    EmailRawMessage,
)
from . import paging, problems, schemas
from .accounts import account_or_404
from .documents import MESSAGES, api, send

#: Types that no browser runs; everything else goes out as plain bytes.
HARMLESS = frozenset(
    ("application/pdf", "image/gif", "image/jpeg", "image/png", "image/webp", "text/plain")
)

SUMMARY = (
    EmailRawMessage.id,
    EmailRawMessage.status,
    EmailRawMessage.subject,
    EmailRawMessage.from_addresses,
    EmailRawMessage.date,
    EmailRawMessage.internal_date,
    EmailRawMessage.stored_at,
    EmailRawMessage.size,
    EmailRawMessage.sha256,
    EmailRawMessage.storage_type,
    EmailRawMessage.attachment_count,
    EmailRawMessage.error,
)


def message_or_404(message_id: int) -> EmailRawMessage:
    """The message with its account, unless that is being deleted.

    Raises:
      falcon.HTTPNotFound: there is none.
    """
    table = EmailRawMessage
    with database.connected():
        message = (
            table.select(table, EmailAccount.uuid)
            .join(EmailAccount)
            .where(table.id == message_id, EmailAccount.state != AccountState.DELETING)
            .get_or_none()
        )
    if message is None:
        raise problems.not_found("message")
    return message  # type: ignore[no-any-return]


def _summary(message: EmailRawMessage, account_uuid: str) -> dict[str, Any]:
    return {
        "account_id": account_uuid,
        "from_": message.from_addresses or [],
        **{
            column.name: getattr(message, column.name)
            for column in SUMMARY
            if column.name != "from_addresses"
        },
    }


def _whole(message: EmailRawMessage) -> schemas.Message:
    with database.connected():
        attachments = list(
            EmailAttachment.select()
            .where(EmailAttachment.message == message)
            .order_by(EmailAttachment.position)
        )
        locations = list(
            EmailLocation.select(EmailLocation, EmailFolder.name)
            .join(EmailFolder)
            .where(EmailLocation.message == message)
        )
    return schemas.Message(
        **_summary(message, message.account.uuid),
        to=message.to_addresses or [],
        cc=message.cc_addresses or [],
        bcc=message.bcc_addresses or [],
        reply_to=message.reply_to_addresses or [],
        message_id=message.message_id,
        in_reply_to=message.in_reply_to,
        references=message.reference_ids or [],
        headers=message.headers or [],
        text=message.text_body,
        text_derived=message.text_derived,
        html=message.html_body,
        attachments=[_attachment(row) for row in attachments],
        locations=[
            schemas.Location(folder=row.folder.name, uidvalidity=row.uidvalidity, uid=row.uid)
            for row in locations
        ],
        attempts=message.attempts,
        processed_at=message.processed_at,
        parser=message.parser,
        defects=message.defects or [],
    )


def _attachment(row: EmailAttachment) -> schemas.Attachment:
    names = [name for name in schemas.Attachment.model_fields if name != "n"]
    return schemas.Attachment(n=row.position, **{name: getattr(row, name) for name in names})


class MessageList:
    @api.validate(
        query=schemas.MessageQuery,
        resp=Response(HTTP_200=schemas.MessagePage, HTTP_404=schemas.Problem),
        tags=[MESSAGES],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """List a mailbox's messages, newest first"""
        account = account_or_404(account_id)
        query: schemas.MessageQuery = req.context.query
        table = EmailRawMessage
        rows = _filtered(account, query).order_by(table.internal_date.desc(), table.id.desc())
        with database.connected():
            found = list(rows.limit(query.limit + 1))
        items = found[: query.limit]
        following = None
        if len(found) > query.limit:
            following = paging.encode(items[-1].internal_date, items[-1].id)
        page = [schemas.MessageSummary(**_summary(row, account.uuid)) for row in items]
        send(resp, schemas.MessagePage(items=page, next=following))


def _filtered(account: EmailAccount, query: schemas.MessageQuery) -> Any:
    table = EmailRawMessage
    rows = table.select(*SUMMARY).where(table.account == account)
    if query.cursor:
        moment, row_id = paging.decode_moment(query.cursor)
        rows = rows.where(
            (table.internal_date < moment) | ((table.internal_date == moment) & (table.id < row_id))
        )
    if query.status:
        rows = rows.where(table.status == query.status)
    if query.since:
        rows = rows.where(table.internal_date >= query.since)
    if query.before:
        rows = rows.where(table.internal_date < query.before)
    if query.sha256:
        rows = rows.where(table.sha256 == query.sha256)
    if query.message_id:
        rows = rows.where(table.message_id == query.message_id)
    if query.folder:
        lying = (
            EmailLocation.select(EmailLocation.message)
            .join(EmailFolder)
            .where(EmailFolder.account == account, EmailFolder.name == query.folder)
        )
        rows = rows.where(table.id.in_(lying))
    return rows


class MessageItem:
    @api.validate(
        resp=Response(HTTP_200=schemas.Message, HTTP_404=schemas.Problem), tags=[MESSAGES]
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, message_id: int) -> None:
        """Show a message: fields, bodies, attachments, places"""
        send(resp, _whole(message_or_404(message_id)))


class RawMessage:
    @api.validate(resp=Response("HTTP_200", HTTP_404=schemas.Problem), tags=[MESSAGES])
    def on_get(self, req: falcon.Request, resp: falcon.Response, message_id: int) -> None:
        """Download the exact bytes that the server sent"""
        row = message_or_404(message_id)
        _download(resp, row, "message/rfc822", f"message-{row.id}.eml")


class AttachmentItem:
    @api.validate(resp=Response("HTTP_200", HTTP_404=schemas.Problem), tags=[MESSAGES])
    def on_get(self, req: falcon.Request, resp: falcon.Response, message_id: int, n: int) -> None:
        """Download an attachment, decoded"""
        message = message_or_404(message_id)
        table = EmailAttachment
        with database.connected():
            row = table.get_or_none(table.message == message, table.position == n)
        if row is None:
            raise problems.not_found("attachment")
        harmless = row.content_type in HARMLESS
        kind = row.content_type if harmless else "application/octet-stream"
        _download(resp, row, kind, row.safe_name)


def _download(
    resp: falcon.Response, row: EmailRawMessage | EmailAttachment, kind: str, name: str
) -> None:
    """Stream a blob, never to be run or shown by a browser as a page of this site."""
    resp.content_type = kind
    resp.downloadable_as = name
    resp.set_header("Content-Security-Policy", "sandbox; default-src 'none'")
    resp.set_header("ETag", f'"{row.sha256}"')
    resp.set_stream(runtime.storage().open(row.storage_key, row.storage_type), row.size)


class MessageRetry:
    @api.validate(
        resp=Response(HTTP_202=schemas.Message, HTTP_404=schemas.Problem, HTTP_409=schemas.Problem),
        tags=[MESSAGES],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response, message_id: int) -> None:
        """Process a failed message again"""
        message = message_or_404(message_id)
        if not accounts.replay(message):
            raise falcon.HTTPConflict(description=f"the message is {message.status}, not failed")
        queues.offer(process_message, message.id)
        resp.status = falcon.HTTP_202
        send(resp, _whole(message_or_404(message_id)))


def install(app: "falcon.App[Any, Any]") -> None:
    message = f"/admin/messages/{{message_id:int(min=1, max={paging.MAX_ID})}}"
    app.add_route("/admin/email-accounts/{account_id:uuid}/messages", MessageList())
    app.add_route(message, MessageItem())
    app.add_route(f"{message}/raw", RawMessage())
    app.add_route(f"{message}/attachments/{{n:int(min=0, max=1000000)}}", AttachmentItem())
    app.add_route(f"{message}/retry", MessageRetry())
