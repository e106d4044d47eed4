"""One request: what it tells of an event, signed after the Standard Webhooks specification."""

import time
import uuid as uuids
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog
from standardwebhooks import Webhook

from .. import database, runtime
from ..crypto import DecryptionError
from ..events import Event
from ..imap import ImapError, https
from ..models import EmailAttachment, EmailRawMessage, Payload, WebhookEndpoint
from ..settings import settings
from .endpoints import context

log = structlog.get_logger()

#: Characters of requests and answers that the log keeps.
EXCERPT = 2_000
#: What payloads tell of a message, and what only the largest of them does.
FIELDS = (
    *(EmailRawMessage.id, EmailRawMessage.subject, EmailRawMessage.from_addresses),
    *(EmailRawMessage.to_addresses, EmailRawMessage.cc_addresses, EmailRawMessage.date),
    *(EmailRawMessage.internal_date, EmailRawMessage.message_id, EmailRawMessage.in_reply_to),
    *(EmailRawMessage.size, EmailRawMessage.sha256, EmailRawMessage.status),
)
TEXTS = (EmailRawMessage.text_body, EmailRawMessage.html_body)
#: How a test event is called; it is in no log of events.
TEST = "webhook.test"


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one request came to. ``retry_after`` is in seconds, where the receiver says so."""

    outcome: str
    request: str
    duration_ms: int
    status: int | None = None
    error: str | None = None
    answer: str | None = None
    retry_after: float | None = None

    @property
    def delivered(self) -> bool:
        return self.outcome == "delivered"


def send(endpoint: WebhookEndpoint, name: str, kind: str, body: str) -> Delivery:
    """One signed request. Its outcome is ``delivered`` or ``failed``."""
    began = time.monotonic()
    moment = datetime.now(UTC)
    try:
        headers = {
            "Content-Type": "application/json",
            "webhook-id": name,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": _signatures(endpoint, name, moment, body),
        }
        answer = https.post(
            endpoint.url, settings(), settings().webhook_timeout, body.encode(), headers
        )
    except (ImapError, DecryptionError) as error:
        return Delivery("failed", body, _since(began), error=str(error))
    text = answer.body[:EXCERPT].decode("utf-8", "replace").replace("\0", "\ufffd")
    if 200 <= answer.status < 300:
        return Delivery("delivered", body, _since(began), answer.status, answer=text)
    log.info("not delivered", webhook=endpoint.uuid, type=kind, status=answer.status)
    reason = f"the receiver answers {answer.status}"
    wait = _retry_after(answer.retry_after)
    return Delivery("failed", body, _since(began), answer.status, reason, text, wait)


def _since(began: float) -> int:
    return int((time.monotonic() - began) * 1_000)


def _retry_after(value: str) -> float | None:
    """Seconds of a Retry-After (RFC 9110, 10.2.3); dates are not waited for."""
    return float(value) if value.isascii() and value.isdigit() else None


def _signatures(endpoint: WebhookEndpoint, name: str, moment: datetime, body: str) -> str:
    """The signature of the secret, and that of the one before while it is still valid."""
    sealed = {"secret": endpoint.secret}
    if endpoint.old_secret and endpoint.old_secret_until > moment:
        sealed["old_secret"] = endpoint.old_secret
    ring, uuid = runtime.keyring(), endpoint.uuid
    opened = (ring.decrypt(one, context(uuid, column)) for column, one in sealed.items())
    return " ".join(Webhook(secret).sign(name, moment, body) for secret in opened)


def body_of(event: Event, endpoint: WebhookEndpoint) -> str:
    data = event.public() | event.data
    for name in ("type", "created_at", "data"):
        del data[name]
    if event.message_id is not None and endpoint.payload != Payload.IDS:
        data["message"] = _message(event.message_id, endpoint)
    return _envelope(str(event.type), event.created_at, data)


def _envelope(kind: str, moment: datetime, data: dict[str, Any]) -> str:
    timestamp = moment.isoformat().replace("+00:00", "Z")
    return orjson.dumps({"type": kind, "timestamp": timestamp, "data": data}).decode()


def _message(message_id: int, endpoint: WebhookEndpoint) -> dict[str, Any] | None:
    """What a payload says of a message; ``None`` when it is gone."""
    table = EmailRawMessage
    texts = TEXTS if endpoint.payload == Payload.BODIES else ()
    with database.connected():
        row = table.select(*FIELDS, *texts).where(table.id == message_id).get_or_none()
        if row is None:
            return None
        parts = EmailAttachment
        attachments = list(parts.select().where(parts.message == row).order_by(parts.position))
    fields: dict[str, Any] = {
        "subject": row.subject,
        "from": row.from_addresses or [],
        "to": row.to_addresses or [],
        "cc": row.cc_addresses or [],
        "date": row.date,
        "internal_date": row.internal_date,
        "message_id": row.message_id,
        "in_reply_to": row.in_reply_to,
        "size": row.size,
        "sha256": row.sha256,
        "status": row.status,
        "attachments": [
            {"n": one.position, "name": one.safe_name, "content_type": one.content_type}
            | {"size": one.size, "sha256": one.sha256}
            for one in attachments
        ],
    }
    if endpoint.payload == Payload.BODIES:
        whole = {"text": row.text_body or "", "html": row.html_body or ""}
        cut = {name: _cut(text, endpoint.body_limit) for name, text in whole.items()}
        fields |= cut | {"truncated": cut != whole}
    return fields


def _cut(text: str, size: int) -> str:
    """As much of a text as fits into so many bytes."""
    return text.encode()[:size].decode("utf-8", "ignore")


def test(endpoint: WebhookEndpoint) -> Delivery:
    """Send a test event at once, whatever the endpoint's state and filters."""
    name = f"test_{uuids.uuid4()}"
    body = _envelope(TEST, datetime.now(UTC), {"message": "mailpoll can reach this endpoint"})
    return send(endpoint, name, TEST, body)
