"""Endpoints as an operator has them: added, changed, given new secrets, set back, removed."""

import base64
import secrets
import uuid as uuids
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from peewee import fn

from .. import audit, database, events, runtime
from ..models import EmailEvent, EndpointState, WebhookDelivery, WebhookEndpoint
from ..settings import settings

#: Seconds for which the secret before is used beside a new one.
OVERLAP = 86_400


class EndpointError(Exception):
    """A field of an endpoint does not work."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


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
        fields |= afresh()
    return _update(endpoint, fields, "webhook.change")


def rotate(endpoint: WebhookEndpoint) -> str:
    """A new secret. For a day requests bear the signature of the one before too."""
    secret = _new_secret()
    old = runtime.keyring().decrypt(endpoint.secret, context(endpoint.uuid, "secret"))
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
    _update(endpoint, {"position": position, **afresh()}, "webhook.replay")
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
    return runtime.keyring().encrypt(secret, context(uuid, column))


def context(uuid: str, column: str) -> str:
    """What a secret's ciphertext is bound to."""
    return f"{uuid}:{column}"


def afresh() -> dict[str, Any]:
    """The columns of an endpoint of which nothing bad is known."""
    return {
        "attempts": 0,
        "failing_since": None,
        "next_attempt_at": None,
        "refused": 0,
        "refused_from": None,
    }


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
