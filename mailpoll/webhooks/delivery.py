"""Each endpoint gets its events in order, one at a time, until it has taken them.

An endpoint's ``position`` in the event log is committed behind each delivery: a crash anywhere
repeats one at most, which the receiver tells by its id. What fails is tried again, later each time;
everything behind it waits, as the order is kept. An event that the receiver refuses by itself (a
4xx status) is set aside after some attempts: trying again would not help, and others may pass. When
none does, it is the receiver that is wrong: the endpoint goes back to the first of them and waits.
"""

import random
import time
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import structlog

from .. import database, events
from ..events import Event
from ..models import EndpointState, WebhookDelivery, WebhookEndpoint
from .endpoints import afresh
from .request import EXCERPT, Delivery, body_of, send

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
BEHIND = database.Statement("""
    SELECT id FROM webhook_endpoints
    WHERE state = 'active' AND (next_attempt_at IS NULL OR next_attempt_at <= ?)
        AND (lease_until IS NULL OR lease_until <= ?)
        AND (position < (SELECT number FROM email_event_counter WHERE id = 1)
            OR EXISTS (SELECT 1 FROM email_events WHERE number IS NULL))
    ORDER BY id
""")
#: A message that nobody can delete before the transaction ends.
MESSAGE = database.Statement("SELECT id FROM email_raw_messages WHERE id = ? FOR UPDATE")


def behind() -> list[int]:
    """The endpoints that can be told of events, and that nobody delivers to at the moment.

    Whoever does looks for news once more when it has given the endpoint back.
    """
    with database.connected():
        moment = database.timestamp(database.now())
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
    body = body_of(event, endpoint)
    done = send(endpoint, f"evt_{event.number}", str(event.type), body)
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
        return {**afresh(), **told, "position": event.number}
    if done.outcome == "failed":
        return _failed(endpoint, done)
    first = event.number if endpoint.refused_from is None else endpoint.refused_from
    aside = {"refused_from": first, "refused": endpoint.refused + 1}
    if aside["refused"] < REFUSED_IN_A_ROW:
        return {**afresh(), **aside, "position": event.number, "last_error": done.error}
    return {**_failed(endpoint, done), **aside, "position": first - 1}


def _failed(endpoint: WebhookEndpoint, done: Delivery) -> dict[str, Any]:
    """The columns of a failure: when to try again, or that there is no use."""
    moment = database.now()
    since = endpoint.failing_since or moment
    if done.retry_after is not None:
        pause = min(done.retry_after, BACKOFF_MAX)
    else:
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
    done = send(endpoint, f"evt_{number}", str(event.type), body_of(event, endpoint))
    with database.transaction(durable=False):
        if not WebhookEndpoint.select().where(WebhookEndpoint.id == endpoint.id).exists():
            return None  # removed meanwhile
        _log(endpoint, event, 1, done)
    return event, done
