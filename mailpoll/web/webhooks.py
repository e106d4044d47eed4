"""``/admin/webhooks``: programs that are told of events, their secrets, and what became of it."""

from typing import Any
from uuid import UUID

import falcon
from spectree import Response

from .. import database, events, queues, webhooks
from ..actors import deliver_events
from ..models import Scope, WebhookDelivery, WebhookEndpoint
from . import paging, problems, schemas
from .documents import WEBHOOKS, route, send


def endpoint_or_404(uuid: UUID) -> WebhookEndpoint:
    """The endpoint with this public id.

    Raises:
      falcon.HTTPNotFound: there is none.
    """
    endpoint = webhooks.find(str(uuid))
    if endpoint is None:
        raise problems.not_found("webhook")
    return endpoint


def _fields(endpoint: WebhookEndpoint, last: int) -> dict[str, Any]:
    own = {"id": endpoint.uuid, "behind": max(0, last - endpoint.position)}
    names = schemas.Webhook.model_fields.keys() - own.keys()
    return own | {name: getattr(endpoint, name) for name in names}


def show(endpoint: WebhookEndpoint) -> schemas.Webhook:
    """An endpoint as the API tells it: without its secret."""
    return schemas.Webhook(**_fields(endpoint, events.last()))


def show_with_secret(endpoint: WebhookEndpoint, secret: str) -> schemas.WebhookWithSecret:
    """The same with the secret, for the once that it is told."""
    return schemas.WebhookWithSecret(**_fields(endpoint, events.last()), secret=secret)


def columns(request: schemas.Request) -> dict[str, Any]:
    """The given fields as the table takes them."""
    fields = request.model_dump(exclude_unset=True)
    if fields.get("accounts") is not None:
        fields["accounts"] = [str(uuid) for uuid in fields["accounts"]]
    if fields.get("types") is not None:
        fields["types"] = [str(kind) for kind in fields["types"]]
    return fields


class WebhookList:
    @route(Scope.READ, resp=Response(HTTP_200=schemas.WebhookPage), tags=[WEBHOOKS])
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List webhooks"""
        last = events.last()
        items = [schemas.Webhook(**_fields(row, last)) for row in webhooks.listed()]
        send(resp, schemas.WebhookPage(items=items))

    @route(
        Scope.ADMIN,
        json=schemas.NewWebhook,
        resp=Response(HTTP_201=schemas.WebhookWithSecret, HTTP_422=schemas.Problem),
        tags=[WEBHOOKS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Add a webhook, which is told of what happens from now on

        The answer holds the secret that its requests are signed with, for this once.
        """
        endpoint, secret = webhooks.create(**columns(req.context.json))
        resp.status = falcon.HTTP_201
        resp.location = f"/admin/webhooks/{endpoint.uuid}"
        send(resp, show_with_secret(endpoint, secret))


class WebhookItem:
    @route(
        Scope.READ,
        resp=Response(HTTP_200=schemas.Webhook, HTTP_404=schemas.Problem),
        tags=[WEBHOOKS],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, webhook_id: UUID) -> None:
        """Show a webhook"""
        send(resp, show(endpoint_or_404(webhook_id)))

    @route(
        Scope.ADMIN,
        json=schemas.WebhookChange,
        resp=Response(HTTP_200=schemas.Webhook, HTTP_404=schemas.Problem, HTTP_422=schemas.Problem),
        tags=[WEBHOOKS],
    )
    def on_patch(self, req: falcon.Request, resp: falcon.Response, webhook_id: UUID) -> None:
        """Change a webhook; made active again, it goes on where it was"""
        endpoint = webhooks.change(endpoint_or_404(webhook_id), columns(req.context.json))
        queues.offer(deliver_events, endpoint.id)
        send(resp, show(endpoint))

    @route(Scope.ADMIN, resp=Response("HTTP_204", HTTP_404=schemas.Problem), tags=[WEBHOOKS])
    def on_delete(self, req: falcon.Request, resp: falcon.Response, webhook_id: UUID) -> None:
        """Remove a webhook with its log"""
        webhooks.delete(endpoint_or_404(webhook_id))
        resp.status = falcon.HTTP_204


class WebhookSecret:
    @route(
        Scope.ADMIN,
        resp=Response(HTTP_200=schemas.WebhookWithSecret, HTTP_404=schemas.Problem),
        tags=[WEBHOOKS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response, webhook_id: UUID) -> None:
        """Make a new secret; for a day requests are signed with both"""
        endpoint = endpoint_or_404(webhook_id)
        secret = webhooks.rotate(endpoint)
        send(resp, show_with_secret(endpoint, secret))


class WebhookTest:
    @route(
        Scope.OPERATE,
        resp=Response(HTTP_200=schemas.Delivery, HTTP_404=schemas.Problem),
        tags=[WEBHOOKS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response, webhook_id: UUID) -> None:
        """Send a test event now, and tell what the receiver answers"""
        done = webhooks.test(endpoint_or_404(webhook_id))
        send(resp, sent(done, None, webhooks.TEST))


def sent(done: webhooks.Delivery, number: int | None, kind: str) -> schemas.Delivery:
    """What a request out of turn came to, as the API tells it."""
    return schemas.Delivery(
        id=None,
        event=number,
        type=kind,
        attempt=1,
        outcome=done.outcome,
        status=done.status,
        error=done.error,
        request=done.request[: webhooks.EXCERPT],
        answer=done.answer,
        duration_ms=done.duration_ms,
        created_at=database.now(),
    )


class WebhookReplay:
    @route(
        Scope.OPERATE,
        json=schemas.WebhookReplay,
        resp=Response(HTTP_202=schemas.Webhook, HTTP_404=schemas.Problem, HTTP_422=schemas.Problem),
        tags=[WEBHOOKS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response, webhook_id: UUID) -> None:
        """Send again what is behind an event, or from a time on; ids stay the same"""
        endpoint = endpoint_or_404(webhook_id)
        query: schemas.WebhookReplay = req.context.json
        webhooks.replay(endpoint, query.after, query.since)
        queues.offer(deliver_events, endpoint.id)
        resp.status = falcon.HTTP_202
        send(resp, show(endpoint_or_404(webhook_id)))


class DeliveryList:
    @route(
        Scope.READ,
        query=schemas.DeliveryQuery,
        resp=Response(HTTP_200=schemas.DeliveryPage, HTTP_404=schemas.Problem),
        tags=[WEBHOOKS],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, webhook_id: UUID) -> None:
        """List what was sent to a webhook, newest first"""
        endpoint = endpoint_or_404(webhook_id)
        query: schemas.DeliveryQuery = req.context.query
        before = paging.decode_id(query.cursor) if query.cursor else None
        found = webhooks.deliveries(endpoint, query.limit + 1, query.outcome, before)
        items = found[: query.limit]
        following = paging.encode(items[-1].id) if len(found) > query.limit else None
        shown = [delivery(row) for row in items]
        send(resp, schemas.DeliveryPage(items=shown, next=following))


def delivery(row: WebhookDelivery) -> schemas.Delivery:
    """A row of the log, as the API tells it."""
    own = {"event": row.event_number, "type": row.event_type}
    names = schemas.Delivery.model_fields.keys() - own.keys()
    return schemas.Delivery(**own, **{name: getattr(row, name) for name in names})


class EventRedelivery:
    @route(
        Scope.OPERATE,
        resp=Response(HTTP_200=schemas.Delivery, HTTP_404=schemas.Problem),
        tags=[WEBHOOKS],
    )
    def on_post(
        self, req: falcon.Request, resp: falcon.Response, webhook_id: UUID, number: int
    ) -> None:
        """Send one event again now, out of its turn"""
        endpoint = endpoint_or_404(webhook_id)
        found = webhooks.redeliver(endpoint, number)
        if found is None:
            raise problems.not_found("event")
        event, done = found
        send(resp, sent(done, number, str(event.type)))


def install(app: "falcon.App[Any, Any]") -> None:
    webhook = "/admin/webhooks/{webhook_id:uuid}"
    app.add_route("/admin/webhooks", WebhookList())
    app.add_route(webhook, WebhookItem())
    app.add_route(f"{webhook}/secret", WebhookSecret())
    app.add_route(f"{webhook}/test", WebhookTest())
    app.add_route(f"{webhook}/replay", WebhookReplay())
    app.add_route(f"{webhook}/deliveries", DeliveryList())
    number = f"{{number:int(min=1, max={paging.MAX_ID})}}"
    app.add_route(f"{webhook}/events/{number}/redeliver", EventRedelivery())
