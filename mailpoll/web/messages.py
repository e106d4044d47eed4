"""Stored mail: lists, whole messages, raw bytes, attachments, replay."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

import falcon
from peewee import OP, SQL, Expression, NodeList, Tuple, fn
from spectree import Response

from .. import audit, database, holds, queues, replay, runtime, signatures
from ..actors import process_message
from ..blobs import StorageType
from ..inside import files_of, look
from ..models import (
    ARCHIVED,
    UNFINISHED,
    UNSEEN,
    AccountState,
    EmailAccount,
    EmailAttachment,
    EmailFlag,
    EmailFolder,
    EmailLocation,
    EmailRawMessage,
    MessageStatus,
    Scope,
)
from ..parsing.authentication import authentication
from ..parsing.replies import reply_of
from ..parsing.tnef import Tnef
from . import paging, problems, schemas
from .accounts import account_or_404, show_hold
from .documents import MESSAGES, route, send

#: Types that no browser runs; everything else goes out as plain bytes.
HARMLESS = frozenset(
    ("application/pdf", "image/gif", "image/jpeg", "image/png", "image/webp", "text/plain")
)

#: Of which there are few: an index of their own has them.
UNFINISHED_STATUSES = (MessageStatus.STORED, MessageStatus.FAILED)

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
    EmailRawMessage.thread_id,
    EmailRawMessage.preview,
    EmailRawMessage.error,
)


def find_message(message_id: int) -> EmailRawMessage | None:
    """The message with its account, unless that is being deleted."""
    table = EmailRawMessage
    with database.connected():
        found: EmailRawMessage | None = (
            table.select(table, EmailAccount.id, EmailAccount.uuid, EmailAccount.sync_flags)
            .join(EmailAccount)
            .where(table.id == message_id, EmailAccount.state != AccountState.DELETING)
            .get_or_none()
        )
    return found


def message_or_404(message_id: int) -> EmailRawMessage:
    """As ``find_message``.

    Raises:
      falcon.HTTPNotFound: there is none.
    """
    message = find_message(message_id)
    if message is None:
        raise problems.not_found("message")
    return message


Marks = dict[str, list[str]]


def marks_of(messages: Sequence[EmailRawMessage]) -> dict[int, Marks]:
    """Flags and labels of all places where messages lie now, by the message's id.

    A message that lies nowhere has none, and one whose account does not follow flags those only
    that an import has brought.
    """
    if not messages:
        return {}
    place, account = EmailLocation, EmailAccount
    rows = (
        place.select(place.message, place.flags, place.labels)
        .join(EmailFolder)
        .join(account)
        .where(
            place.message.in_([message.id for message in messages]),
            place.expunged_at.is_null(),
            place.flags.is_null(False),
            account.sync_flags | EmailFolder.wire_name.startswith(ARCHIVED),
        )
        .order_by(place.id)
    )
    found: dict[int, Marks] = {}
    with database.connected():
        for message_id, *marks in rows.tuples():
            known = found.setdefault(message_id, {"flags": [], "labels": []})
            for name, values in zip(known, marks, strict=True):
                known[name] = list(dict.fromkeys([*known[name], *(values or [])]))
    return found


def summary(message: EmailRawMessage, account_uuid: str, marks: dict[int, Marks]) -> dict[str, Any]:
    """The fields of ``schemas.MessageSummary``; ``marks``: what ``marks_of`` has found."""
    return {
        "account_id": account_uuid,
        "from_": message.from_addresses or [],
        "flags": None,
        "labels": None,
        **marks.get(message.id, {}),
        **{
            column.name: getattr(message, column.name)
            for column in SUMMARY
            if column.name != "from_addresses"
        },
    }


def whole(message: EmailRawMessage) -> schemas.Message:
    """All that is known of a message."""
    told = message.account.sync_flags
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
    hold = holds.of_message(message.id)
    return schemas.Message(
        **summary(message, message.account.uuid, marks_of([message])),
        **_extras(message, attachments),
        dkim=message.dkim,
        dkim_checked_at=message.dkim_checked_at,
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
            schemas.Location(
                folder=row.folder.name,
                uidvalidity=row.uidvalidity,
                uid=row.uid,
                flags=row.flags if told or row.folder.archived else None,
                labels=row.labels if told or row.folder.archived else None,
                expunged_at=row.expunged_at,
            )
            for row in locations
        ],
        hold=hold and show_hold(hold, message.account.uuid),
        attempts=message.attempts,
        processed_at=message.processed_at,
        parser=message.parser,
        defects=message.defects or [],
    )


def _extras(message: EmailRawMessage, attachments: Sequence[EmailAttachment]) -> dict[str, Any]:
    """What is worked out when a message is looked at."""
    inside = look(attachments)
    facts = authentication(message.headers or [])
    shown = {row.content_id: row.position for row in reversed(attachments) if row.content_id}
    return {
        "reply_text": None if message.text_body is None else reply_of(message.text_body),
        "inline": shown,
        "calendars": [
            schemas.Calendar(n=n, **asdict(found)) for n, found in inside.calendars.items()
        ],
        "tnef": [_tnef(n, found) for n, found in inside.tnef.items()],
        "not_read": inside.failed,
        "authentication": facts and schemas.AuthenticationResults(**asdict(facts)),
    }


def _tnef(n: int, found: Tnef) -> schemas.Tnef:
    files = [
        schemas.TnefFile(
            k=k,
            name=file.name,
            safe_name=file.safe_name,
            content_type=file.content_type,
            size=len(file.content),
            sha256=hashlib.sha256(file.content).hexdigest(),
        )
        for k, file in enumerate(found.files)
    ]
    return schemas.Tnef(
        n=n,
        subject=found.subject,
        text=found.text,
        html=found.html,
        files=files,
        complete=found.complete,
    )


def _check_signatures(message: EmailRawMessage) -> None:
    """Have the DKIM signatures checked, and write down what DNS has answered.

    What was known stays where DNS does not answer: nobody can ask for keys that are gone.
    """
    kind = StorageType(message.storage_type)
    with runtime.storage().open(message.storage_key, kind) as stream:
        signed = signatures.check(stream.read(signatures.MAX_BYTES + 1))
    if message.dkim is not None and any(one.result == "temperror" for one in signed):
        return
    columns = {"dkim": [asdict(one) for one in signed], "dkim_checked_at": database.now()}
    with database.transaction(durable=False):
        database.update(EmailRawMessage, columns, "id = ?", message.id)


def _attachment(row: EmailAttachment) -> schemas.Attachment:
    names = [name for name in schemas.Attachment.model_fields if name != "n"]
    return schemas.Attachment(n=row.position, **{name: getattr(row, name) for name in names})


class MessageList:
    @route(
        Scope.READ,
        query=schemas.MessageQuery,
        resp=Response(HTTP_200=schemas.MessagePage, HTTP_404=schemas.Problem),
        tags=[MESSAGES],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """List a mailbox's messages, newest first"""
        account = account_or_404(account_id)
        query: schemas.MessageQuery = req.context.query
        asked = {"flag": query.flag, "unseen": query.unseen}
        for name, value in asked.items():
            if value is not None and not account.sync_flags:
                raise problems.field_problem(name, "the account does not follow flags: sync_flags")
        send(resp, page(account, query))


def page(account: EmailAccount, query: schemas.MessageQuery) -> schemas.MessagePage:
    """A page of a mailbox's messages, newest first."""
    with database.connected():
        found = _find(account, query)
    items = found[: query.limit]
    following = None
    if len(found) > query.limit:
        following = paging.encode(items[-1].internal_date, items[-1].id)
    marks = marks_of(items)
    shown = [schemas.MessageSummary(**summary(row, account.uuid, marks)) for row in items]
    return schemas.MessagePage(items=shown, next=following)


def _find(account: EmailAccount, query: schemas.MessageQuery) -> list[EmailRawMessage]:
    """One message more than the page has room for, if there is one.

    Each way begins at an index that has the messages in the order of the list, or few of them, so
    that a page costs the same whatever is stored.
    """
    table = EmailRawMessage
    folders = _folders(account, query.folder) if query.folder else None
    if folders == []:
        return []
    few = query.sha256 or query.message_id or query.status in UNFINISHED_STATUSES
    flags = _flags(query)
    if flags and not few:
        ids = _flagged(account, folders, flags, query)
        if not ids:
            return []
        rows = table.select(*SUMMARY).where(table.id.in_(ids))
    elif folders and not few:
        rows = table.select(*SUMMARY).where(table.id.in_(_newest_of(folders, query)))
    else:
        rows = _filtered(account, query)
        if folders:
            rows = rows.where(fn.EXISTS(_place_in(folders)))
        for flag in flags:
            rows = rows.where(fn.EXISTS(_has_flag(account, folders, flag)))
    return list(rows.order_by(table.internal_date.desc(), table.id.desc()).limit(query.limit + 1))


def _folders(account: EmailAccount, name: str) -> list[int]:
    """The ids of the folders of this name; two that servers spell differently may share one."""
    table = EmailFolder
    rows = table.select(table.id).where(table.account == account, table.name == name)
    return [folder_id for (folder_id,) in rows.tuples()]


def _place_in(folders: list[int]) -> Any:
    place = EmailLocation
    return place.select(place.id).where(
        place.message == EmailRawMessage.id, place.folder.in_(folders)
    )


def _flags(query: schemas.MessageQuery) -> list[str]:
    """What the index of flags is to be asked for."""
    found = [] if query.flag is None else [EmailFlag.of_flag(query.flag)]
    if query.unseen is not None:
        found.append(UNSEEN if query.unseen else "\\seen")
    return found


def _has_flag(account: EmailAccount, folders: list[int] | None, flag: str) -> Any:
    index, message = EmailFlag, EmailRawMessage
    rows = index.select(index.location).where(
        index.account == account.id,
        index.flag == flag,
        index.message_date == message.internal_date,
        index.message_id == message.id,
    )
    return rows.where(index.folder.in_(folders)) if folders else rows


def _flagged(
    account: EmailAccount,
    folders: list[int] | None,
    flags: list[str],
    query: schemas.MessageQuery,
) -> list[int]:
    """The ids of a page of messages with a place that has all the flags, each once."""
    index = EmailFlag
    order = (index.message_date, index.message_id)
    where = index.folder.in_(folders) if folders else index.account == account.id
    rows = index.select(index.message_id).where(
        where, index.flag == flags[0], *_between(query, *order)
    )
    for flag in flags[1:]:
        other = index.alias()
        same = (other.location == index.location) & (other.flag == flag)
        rows = rows.where(fn.EXISTS(other.select(other.location).where(same)))
    if query.status:
        message = EmailRawMessage
        of_status = message.select(message.id).where(
            message.id == index.message_id, message.status == query.status
        )
        rows = rows.where(fn.EXISTS(of_status))
    rows = rows.group_by(*order).order_by(*(column.desc() for column in order))
    return [message_id for (message_id,) in rows.limit(query.limit + 1).tuples()]


def _newest_of(folders: list[int], query: schemas.MessageQuery) -> list[int]:
    """The ids of a page of messages that lie in folders, each once."""
    place = EmailLocation
    order = (place.message_date, place.message)
    rows = place.select(place.message).where(place.folder.in_(folders), *_between(query, *order))
    if query.status:
        rows = rows.join(EmailRawMessage).where(EmailRawMessage.status == query.status)
    rows = rows.group_by(*order).order_by(*(column.desc() for column in order))
    return [message_id for (message_id,) in rows.limit(query.limit + 1).tuples()]


def _filtered(account: EmailAccount, query: schemas.MessageQuery) -> Any:
    table = EmailRawMessage
    owner = table.account
    if query.message_id:
        # Not by the account's index: that has the order of the list, but all its messages too.
        owner = NodeList((SQL("+"), owner), glue="")
    rows = table.select(*SUMMARY).where(
        Expression(owner, OP.EQ, account.id), *_between(query, table.internal_date, table.id)
    )
    if query.status:
        rows = rows.where(table.status == query.status)
        if query.status in UNFINISHED_STATUSES:
            rows = rows.where(UNFINISHED)
    if query.sha256:
        rows = rows.where(table.sha256 == query.sha256)
    if query.message_id:
        rows = rows.where(table.message_id == query.message_id)
    return rows


def _between(query: schemas.MessageQuery, moment: Any, row_id: Any) -> Iterator[Any]:
    """What the cursor and the times of a query ask of the columns that a list is sorted by."""
    if query.cursor:
        last, last_id = paging.decode_moment(query.cursor)
        # Not with OR, which would read all that stands before the cursor.
        yield Tuple(moment, row_id) < (database.timestamp(last), last_id)
    if query.since:
        yield moment >= query.since
    if query.before:
        yield moment < query.before


class MessageItem:
    @route(
        Scope.READ,
        query=schemas.MessageDetail,
        resp=Response(HTTP_200=schemas.Message, HTTP_404=schemas.Problem),
        tags=[MESSAGES],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, message_id: int) -> None:
        """Show a message: fields, bodies, attachments, places"""
        message = message_or_404(message_id)
        if req.context.query.verify:
            _check_signatures(message)
            message = message_or_404(message_id)
        send(resp, whole(message))


class RawMessage:
    @route(Scope.READ, resp=Response("HTTP_200", HTTP_404=schemas.Problem), tags=[MESSAGES])
    def on_get(self, req: falcon.Request, resp: falcon.Response, message_id: int) -> None:
        """Download the exact bytes that the server sent"""
        row = message_or_404(message_id)
        _download(resp, row, "message/rfc822", f"message-{row.id}.eml", "message", str(row.id))


class AttachmentItem:
    @route(Scope.READ, resp=Response("HTTP_200", HTTP_404=schemas.Problem), tags=[MESSAGES])
    def on_get(self, req: falcon.Request, resp: falcon.Response, message_id: int, n: int) -> None:
        """Download an attachment, decoded"""
        row = _attachment_or_404(message_id, n)
        harmless = row.content_type in HARMLESS
        kind = row.content_type if harmless else "application/octet-stream"
        _download(resp, row, kind, row.safe_name, "attachment", f"{message_id}/{n}")


class AttachedFile:
    @route(Scope.READ, resp=Response("HTTP_200", HTTP_404=schemas.Problem), tags=[MESSAGES])
    def on_get(
        self, req: falcon.Request, resp: falcon.Response, message_id: int, n: int, k: int
    ) -> None:
        """Download a file that is in a winmail.dat"""
        files = files_of(_attachment_or_404(message_id, n))
        if k >= len(files):
            raise problems.not_found("file")
        audit.record("attachment.download", "attachment", f"{message_id}/{n}/{k}")
        resp.content_type = "application/octet-stream"
        resp.downloadable_as = files[k].safe_name
        resp.set_header("Content-Security-Policy", "sandbox; default-src 'none'")
        resp.data = files[k].content


def _attachment_or_404(message_id: int, n: int) -> EmailAttachment:
    message = message_or_404(message_id)
    table = EmailAttachment
    with database.connected():
        row = table.get_or_none(table.message == message, table.position == n)
    if row is None:
        raise problems.not_found("attachment")
    return row  # type: ignore[no-any-return]


def _download(
    resp: falcon.Response, row: EmailRawMessage | EmailAttachment, kind: str, name: str, *of: str
) -> None:
    """Stream a blob, never to be run or shown by a browser as a page of this site.

    Parameters:
      of: kind and id of what is downloaded, for the audit log, once it is there.
    """
    stream = runtime.storage().open(row.storage_key, row.storage_type)
    try:
        audit.record(f"{of[0]}.download", *of)
    except BaseException:
        stream.close()
        raise
    resp.content_type = kind
    resp.downloadable_as = name
    resp.set_header("Content-Security-Policy", "sandbox; default-src 'none'")
    resp.set_header("ETag", f'"{row.sha256}"')
    resp.set_stream(stream, row.size)


class MessageRetry:
    @route(
        Scope.OPERATE,
        resp=Response(HTTP_202=schemas.Message, HTTP_404=schemas.Problem, HTTP_409=schemas.Problem),
        tags=[MESSAGES],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response, message_id: int) -> None:
        """Process a failed message again"""
        message = message_or_404(message_id)
        if not replay.one(message):
            raise falcon.HTTPConflict(description=f"the message is {message.status}, not failed")
        queues.offer(process_message, message.id)
        resp.status = falcon.HTTP_202
        send(resp, whole(message_or_404(message_id)))


def install(app: "falcon.App[Any, Any]") -> None:
    message = f"/admin/messages/{{message_id:int(min=1, max={paging.MAX_ID})}}"
    app.add_route("/admin/email-accounts/{account_id:uuid}/messages", MessageList())
    app.add_route(message, MessageItem())
    app.add_route(f"{message}/raw", RawMessage())
    attachment = f"{message}/attachments/{{n:int(min=0, max=1000000)}}"
    app.add_route(attachment, AttachmentItem())
    app.add_route(f"{attachment}/files/{{k:int(min=0, max=1000000)}}", AttachedFile())
    app.add_route(f"{message}/retry", MessageRetry())
