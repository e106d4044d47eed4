"""Webhooks: each endpoint gets its events in order, one at a time, until it has taken them.

An endpoint's ``position`` in the event log is committed behind each delivery: a crash anywhere
repeats one at most, which the receiver tells by its id. What fails is tried again, later each time;
everything behind it waits, as the order is kept. An event that the receiver refuses by itself (a
4xx status) is set aside after some attempts: trying again would not help, and others may pass. When
none does, it is the receiver that is wrong: the endpoint goes back to the first of them and waits.
Requests are signed after the Standard Webhooks specification.
"""

import base64
import random
import secrets
import time
import uuid as uuids
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import orjson
import structlog
from peewee import fn
from standardwebhooks import Webhook

from . import audit, database, events, runtime
from .crypto import DecryptionError
from .events import Event
from .imap import ImapError, https
from .models import (
    EmailAttachment,
    EmailEvent,
    EmailRawMessage,
    EndpointState,
    Payload,
    WebhookDelivery,
    WebhookEndpoint,
)
from .settings import settings

log = structlog.get_logger()

#: Seconds that an endpoint's lease holds without a delivery.
LEASE = 120
#: Events read at once.
PAGE = 100
#: Seconds of the first pause, and of the longest.
BACKOFF, BACKOFF_MAX = 5.0, 3_600.0
#: Seconds of nothing but failures after which an endpoint is disabled.
PATIENCE = 86_400
#: Attempts with an event that the receiver itself refuses.
REFUSALS = 3
#: Events refused in a row, with none accepted between, after which it is not they that are wrong.
REFUSED_IN_A_ROW = 5
#: Statuses below 500 that say "not you", "not here" or "not now" rather than "not this".
NOT_THIS = frozenset((401, 405, 407, 408, 409, 410, 421, 425, 429))
#: Seconds for which the secret before is used beside a new one.
OVERLAP = 86_400
#: Characters of requests and answers that the log keeps.
EXCERPT = 2_000
BEHIND = database.Statement("""
    SELECT id FROM webhook_endpoints
    WHERE state = 'active' AND (next_attempt_at IS NULL OR next_attempt_at <= ?)
        AND (lease_until IS NULL OR lease_until <= ?)
        AND (position < (SELECT number FROM email_event_counter WHERE id = 1)
            OR EXISTS (SELECT 1 FROM email_events WHERE number IS NULL))
    ORDER BY id
""")
#: What payloads tell of a message, and what only the largest of them does.
FIELDS = (
    *(EmailRawMessage.id, EmailRawMessage.subject, EmailRawMessage.from_addresses),
    *(EmailRawMessage.to_addresses, EmailRawMessage.cc_addresses, EmailRawMessage.date),
    *(EmailRawMessage.internal_date, EmailRawMessage.message_id, EmailRawMessage.in_reply_to),
    *(EmailRawMessage.size, EmailRawMessage.sha256, EmailRawMessage.status),
)
TEXTS = (EmailRawMessage.text_body, EmailRawMessage.html_body)
#: A message that nobody can delete before the transaction ends.
MESSAGE = database.Statement("SELECT id FROM email_raw_messages WHERE id = ? FOR UPDATE")
#: How a test event is called; it is in no log of events.
TEST = "webhook.test"


class EndpointError(Exception):
    """A field of an endpoint does not work."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


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


# Endpoints


def create(url: str, **fields: Any) -> tuple[WebhookEndpoint, str]:
    """A new endpoint, which is told of what happens from now on, and its secret.

    Raises:
      EndpointError: the URL cannot be used.
    """
    check_url(url)
    secret = _new_secret()
    uuid = str(uuids.uuid4())
    moment = database.now()
    position = events.last()
    with database.transaction():
        endpoint = WebhookEndpoint.create(
            uuid=uuid,
            url=url,
            secret=_sealed(uuid, "secret", secret),
            position=position,
            created_at=moment,
            updated_at=moment,
            **fields,
        )
        audit.record("webhook.create", "webhook", uuid)
    return endpoint, secret


def change(endpoint: WebhookEndpoint, fields: dict[str, Any]) -> WebhookEndpoint:
    """Change the given fields; an endpoint that is made active again goes on where it was.

    Raises:
      EndpointError: the URL cannot be used.
    """
    if "url" in fields:
        check_url(fields["url"])
    if fields.get("state") == EndpointState.ACTIVE or "url" in fields:
        fields |= _afresh()
    return _update(endpoint, fields, "webhook.change")


def rotate(endpoint: WebhookEndpoint) -> str:
    """A new secret. For a day requests bear the signature of the one before too."""
    secret = _new_secret()
    old = runtime.keyring().decrypt(endpoint.secret, _context(endpoint.uuid, "secret"))
    _update(
        endpoint,
        {
            "secret": _sealed(endpoint.uuid, "secret", secret),
            "old_secret": _sealed(endpoint.uuid, "old_secret", old),
            "old_secret_until": database.now() + timedelta(seconds=OVERLAP),
        },
        "webhook.rotate",
    )
    return secret


def replay(endpoint: WebhookEndpoint, after: int | None, since: datetime | None) -> int:
    """Send again what is in the log behind an event, or from a time on; the new position."""
    position = min(events.last() if after is None else after, events.last())
    if since is not None:
        table = EmailEvent
        with database.connected():
            first = table.select(fn.MIN(table.number)).where(table.created_at >= since).scalar()
        position = events.last() if first is None else int(first) - 1
    _update(endpoint, {"position": position, **_afresh()}, "webhook.replay")
    return position


def delete(endpoint: WebhookEndpoint) -> None:
    """Remove an endpoint with its log."""
    with database.transaction():
        WebhookEndpoint.delete().where(WebhookEndpoint.id == endpoint.id).execute()
        audit.record("webhook.delete", "webhook", endpoint.uuid)


def listed() -> list[WebhookEndpoint]:
    """All endpoints, in the order in which they were added."""
    with database.connected():
        return list(WebhookEndpoint.select().order_by(WebhookEndpoint.id))


def deliveries(
    endpoint: WebhookEndpoint, limit: int, outcome: str | None = None, before: int | None = None
) -> list[WebhookDelivery]:
    """What was sent to an endpoint, newest first.

    Parameters:
      outcome: only of this.
      before: only rows with a lower id.
    """
    table = WebhookDelivery
    rows = table.select().where(table.endpoint == endpoint).order_by(table.id.desc())
    if outcome is not None:
        rows = rows.where(table.outcome == outcome)
    if before is not None:
        rows = rows.where(table.id < before)
    with database.connected():
        return list(rows.limit(limit))


def find(uuid: str) -> WebhookEndpoint | None:
    with database.connected():
        return WebhookEndpoint.get_or_none(WebhookEndpoint.uuid == uuid)  # type: ignore[no-any-return]


def check_url(url: str) -> None:
    """Raises EndpointError unless ``url`` can be posted to."""
    try:
        parts = urlsplit(url)
        # Blanks and line ends: ``urlsplit`` drops some of them, and no request can hold one.
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        usable = usable and url.isprintable() and " " not in url
    except ValueError:
        usable = False
    if not usable:
        raise EndpointError("url", "should be an https:// address")
    if not url.isascii():
        words = "should be ASCII: the host as xn--…, other characters as %C3%BC"
        raise EndpointError("url", words)
    if parts.username or parts.password:
        raise EndpointError("url", "should hold no password: requests are signed")
    if parts.scheme == "http" and not settings().webhook_allowed_networks:
        words = "should begin with https:// (http is for MAILPOLL_WEBHOOK_ALLOWED_NETWORKS)"
        raise EndpointError("url", words)


def _update(endpoint: WebhookEndpoint, fields: dict[str, Any], action: str) -> WebhookEndpoint:
    """Change an endpoint, and let go of it whoever delivers to it as it was."""
    table = WebhookEndpoint
    fields = fields | {"lease_token": table.lease_token + 1, "lease_until": None}
    with database.transaction():
        audit.record(action, "webhook", endpoint.uuid)
        table.update(**fields, updated_at=database.now()).where(table.id == endpoint.id).execute()
        return table.get_by_id(endpoint.id)  # type: ignore[no-any-return]


def _new_secret() -> str:
    """A secret as the specification writes it: ``whsec_`` and 24 to 64 bytes in base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def _sealed(uuid: str, column: str, secret: str) -> str:
    return runtime.keyring().encrypt(secret, _context(uuid, column))


def _context(uuid: str, column: str) -> str:
    """What a secret's ciphertext is bound to."""
    return f"{uuid}:{column}"


# Delivery


def behind() -> list[int]:
    """The endpoints that can be told of events, and that nobody delivers to at the moment.

    Whoever does looks for news once more when it has given the endpoint back.
    """
    moment = database.timestamp(database.now())
    with database.connected():
        return [endpoint_id for (endpoint_id,) in BEHIND.run(moment, moment).fetchall()]


def deliver(endpoint_id: int, seconds: float) -> float | None:
    """Deliver what there is for an endpoint, for so many seconds at most.

    Returns:
      seconds until it should have another turn; ``None``: when there is news.
    """
    # A look before the lease, which is written: many may send an endpoint that waits for its turn.
    endpoint = _lease(endpoint_id) if endpoint_id in behind() else None
    if endpoint is None:
        return None
    try:
        pause = _turn(endpoint, time.monotonic() + seconds)
    except _Taken:
        # As it is now it may have a turn; whoever has it already leaves this one nothing to do.
        return 0
    finally:
        _release(endpoint)
    if pause is None and endpoint.state == EndpointState.ACTIVE:
        # Who announced an event meanwhile has found the endpoint taken.
        return 0 if events.last() > endpoint.position else None
    return pause


def _turn(endpoint: WebhookEndpoint, end: float) -> float | None:
    while time.monotonic() < end:
        upto = events.last()
        page = events.read(endpoint.position, PAGE, endpoint.types)
        for event in filter(partial(_wants, endpoint), page):
            if time.monotonic() >= end:
                return 0
            pause = _deliver_one(endpoint, event)
            if pause is not None or endpoint.state != EndpointState.ACTIVE:
                return pause
        seen = page[-1].number if len(page) == PAGE else upto
        _move(endpoint, position=max(endpoint.position, seen))
        if len(page) < PAGE:
            return None
    return 0


class _Taken(Exception):
    """The endpoint was changed, replayed, or taken by another process."""


def _lease(endpoint_id: int) -> WebhookEndpoint | None:
    table, moment = WebhookEndpoint, database.now()
    with database.transaction(durable=False):
        taken = (
            table.update(
                lease_token=table.lease_token + 1, lease_until=moment + timedelta(seconds=LEASE)
            )
            .where(
                table.id == endpoint_id,
                table.state == EndpointState.ACTIVE,
                table.next_attempt_at.is_null() | (table.next_attempt_at <= moment),
                table.lease_until.is_null() | (table.lease_until <= moment),
            )
            .execute()
        )
        return table.get_by_id(endpoint_id) if taken else None


def _release(endpoint: WebhookEndpoint) -> None:
    where = "id = ? AND lease_token = ?"
    ours = (endpoint.id, endpoint.lease_token)
    with database.transaction(durable=False):
        database.update(WebhookEndpoint, {"lease_until": None}, where, *ours)


def _move(endpoint: WebhookEndpoint, **columns: Any) -> None:
    """Write how far an endpoint is, if it is still ours, and keep it for a while longer.

    Raises:
      _Taken: it is not.
    """
    columns["lease_until"] = database.now() + timedelta(seconds=LEASE)
    where = "id = ? AND lease_token = ? AND state = 'active'"
    with database.transaction(durable=False):
        ours = (endpoint.id, endpoint.lease_token)
        if not database.update(WebhookEndpoint, columns, where, *ours):
            raise _Taken
    for name, value in columns.items():
        setattr(endpoint, name, value)


def _wants(endpoint: WebhookEndpoint, event: Event) -> bool:
    """Whether the endpoint's filters let an event pass; its types were asked of the database."""
    if endpoint.accounts is not None and event.account_uuid not in endpoint.accounts:
        return False
    return bool(endpoint.imports or not event.data.get("imported"))


def _deliver_one(endpoint: WebhookEndpoint, event: Event) -> float | None:
    """Try once to deliver; seconds to wait, or ``None`` if the next event may follow at once.

    Raises:
      _Taken: the endpoint is no longer ours, whatever became of the request.
    """
    began = time.monotonic()
    body = _body(event, endpoint)
    done = _send(endpoint, f"evt_{event.number}", str(event.type), body)
    attempt = endpoint.attempts + 1
    refused = done.status is not None and 400 <= done.status < 500 and done.status not in NOT_THIS
    if refused and attempt >= REFUSALS and endpoint.refused < REFUSED_IN_A_ROW:
        done = replace(done, outcome="refused")
    with database.transaction(durable=False):
        _move(endpoint, **_outcome(endpoint, event, done))
        _log(endpoint, event, attempt, done)
    if endpoint.next_attempt_at is not None:
        return _pause(endpoint)
    if endpoint.rate:
        time.sleep(max(0.0, 1 / endpoint.rate - (time.monotonic() - began)))
    return None


def _outcome(endpoint: WebhookEndpoint, event: Event, done: Delivery) -> dict[str, Any]:
    """The columns of an endpoint behind a request."""
    if done.delivered:
        told = {"last_success_at": database.now(), "last_error": None}
        return {**_afresh(), **told, "position": event.number}
    if done.outcome == "failed":
        return _failed(endpoint, done)
    first = event.number if endpoint.refused_from is None else endpoint.refused_from
    aside = {"refused_from": first, "refused": endpoint.refused + 1}
    if aside["refused"] < REFUSED_IN_A_ROW:
        return {**_afresh(), **aside, "position": event.number, "last_error": done.error}
    return {**_failed(endpoint, done), **aside, "position": first - 1}


def _afresh() -> dict[str, Any]:
    """The columns of an endpoint of which nothing bad is known."""
    return {
        "attempts": 0,
        "failing_since": None,
        "next_attempt_at": None,
        "refused": 0,
        "refused_from": None,
    }


def _failed(endpoint: WebhookEndpoint, done: Delivery) -> dict[str, Any]:
    """The columns of a failure: when to try again, or that there is no use."""
    moment = database.now()
    since = endpoint.failing_since or moment
    pause = done.retry_after
    if pause is None:
        # Spread, so that the endpoints of one host do not come back together.
        longest = min(BACKOFF_MAX, BACKOFF * 2 ** min(endpoint.attempts, 20))
        pause = longest * random.uniform(0.75, 1.25)  # noqa: S311
    columns = {
        "attempts": endpoint.attempts + 1,
        "failing_since": since,
        "next_attempt_at": moment + timedelta(seconds=pause),
        "last_error": done.error,
    }
    gone = done.status == 410
    if gone or moment - since >= timedelta(seconds=PATIENCE):
        why = "the receiver is gone (410)" if gone else f"nothing but failures since {since:%c}"
        columns |= {"state": EndpointState.DISABLED, "last_error": f"{why}: {done.error}"}
        if endpoint.refused_from is not None:
            columns["position"] = endpoint.refused_from - 1
        log.error("webhook disabled", webhook=endpoint.uuid, reason=why)
    return columns


def _pause(endpoint: WebhookEndpoint) -> float | None:
    if endpoint.state != EndpointState.ACTIVE:
        return None
    return max(0.0, (endpoint.next_attempt_at - database.now()).total_seconds())


def _log(endpoint: WebhookEndpoint, event: Event, attempt: int, done: Delivery) -> None:
    """Note a request, in the caller's transaction; not what was sent of a message that is gone."""
    gone = event.message_id is not None and MESSAGE.run(event.message_id).fetchone() is None
    WebhookDelivery.create(
        endpoint=endpoint.id,
        event_number=event.number,
        event_type=str(event.type),
        account_id=event.account_id,
        message_id=event.message_id,
        attempt=attempt,
        outcome=done.outcome,
        status=done.status,
        error=done.error,
        request="" if gone else done.request[:EXCERPT],
        answer=None if gone else done.answer,
        duration_ms=done.duration_ms,
        created_at=database.now(),
    )


def redeliver(endpoint: WebhookEndpoint, number: int) -> tuple[Event, Delivery] | None:
    """Send one event again at once, out of its turn; ``None``: it is not in the log any more."""
    found = events.read(number - 1, 1)
    if not found or found[0].number != number:
        return None
    event = found[0]
    done = _send(endpoint, f"evt_{number}", str(event.type), _body(event, endpoint))
    with database.transaction(durable=False):
        if not WebhookEndpoint.select().where(WebhookEndpoint.id == endpoint.id).exists():
            return None  # removed meanwhile
        _log(endpoint, event, 1, done)
    return event, done


def test(endpoint: WebhookEndpoint) -> Delivery:
    """Send a test event at once, whatever the endpoint's state and filters."""
    name = f"test_{uuids.uuid4()}"
    body = _envelope(TEST, datetime.now(UTC), {"message": "mailpoll can reach this endpoint"})
    return _send(endpoint, name, TEST, body)


def _send(endpoint: WebhookEndpoint, name: str, kind: str, body: str) -> Delivery:
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
    """Seconds of a Retry-After (RFC 9110, 10.2.3), at most an hour; dates are not waited for."""
    return min(float(value), BACKOFF_MAX) if value.isascii() and value.isdigit() else None


def _signatures(endpoint: WebhookEndpoint, name: str, moment: datetime, body: str) -> str:
    """The signature of the secret, and that of the one before while it is still valid."""
    sealed = {"secret": endpoint.secret}
    if endpoint.old_secret and endpoint.old_secret_until > moment:
        sealed["old_secret"] = endpoint.old_secret
    ring, uuid = runtime.keyring(), endpoint.uuid
    opened = (ring.decrypt(one, _context(uuid, column)) for column, one in sealed.items())
    return " ".join(Webhook(secret).sign(name, moment, body) for secret in opened)


def _body(event: Event, endpoint: WebhookEndpoint) -> str:
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


# Housekeeping


def received() -> int | None:
    """The event up to which every endpoint that still wants events has got them."""
    table = WebhookEndpoint
    got = fn.COALESCE(table.refused_from - 1, table.position)
    with database.connected():
        lowest = table.select(fn.MIN(got)).where(table.state != EndpointState.DISABLED)
        return lowest.scalar()  # type: ignore[no-any-return]


def forget(days: int) -> None:
    """Remove old rows of the delivery log."""
    oldest = database.now() - timedelta(days=days)
    table = WebhookDelivery
    while True:
        with database.transaction(durable=False):
            old = table.select(table.id).where(table.created_at < oldest).limit(1_000)
            if table.delete().where(table.id.in_(old)).execute() < 1_000:
                return
