"""``/admin/api-keys`` and ``/admin/audit``: who may ask, and who did what."""

from typing import Any
from uuid import UUID

import falcon
from spectree import Response

from .. import api_keys, audit, database
from ..models import ApiKey, AuditEvent, Scope
from . import paging, problems, schemas
from .documents import ACCESS, route, send


def show(key: ApiKey) -> schemas.ApiKey:
    fields = {name: getattr(key, name) for name in schemas.ApiKey.model_fields if name != "id"}
    return schemas.ApiKey(id=key.uuid, **fields)


class ApiKeyList:
    @route(
        Scope.ADMIN,
        query=schemas.ApiKeyQuery,
        resp=Response(HTTP_200=schemas.ApiKeyPage),
        tags=[ACCESS],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List API keys, revoked ones too"""
        query: schemas.ApiKeyQuery = req.context.query
        rows = ApiKey.select().order_by(ApiKey.id)
        if query.cursor:
            rows = rows.where(ApiKey.id > paging.decode_id(query.cursor))
        with database.connected():
            found = list(rows.limit(query.limit + 1))
        items = found[: query.limit]
        following = paging.encode(items[-1].id) if len(found) > query.limit else None
        send(resp, schemas.ApiKeyPage(items=[show(row) for row in items], next=following))

    @route(
        Scope.ADMIN,
        json=schemas.NewApiKey,
        resp=Response(
            HTTP_201=schemas.CreatedApiKey, HTTP_409=schemas.Problem, HTTP_422=schemas.Problem
        ),
        tags=[ACCESS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Make an API key

        The answer holds its token, which cannot be shown again.
        """
        new: schemas.NewApiKey = req.context.json
        key, token = api_keys.create(new.name, Scope(new.scope), new.expires_at)
        resp.status = falcon.HTTP_201
        resp.location = f"/admin/api-keys/{key.uuid}"
        send(resp, schemas.CreatedApiKey(**show(key).model_dump(), token=token))


class ApiKeyItem:
    @route(
        Scope.ADMIN,
        resp=Response(HTTP_200=schemas.ApiKey, HTTP_404=schemas.Problem),
        tags=[ACCESS],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, key_id: UUID) -> None:
        """Show an API key"""
        with database.connected():
            key = ApiKey.get_or_none(ApiKey.uuid == str(key_id))
        _send_key(resp, key)

    @route(
        Scope.ADMIN,
        resp=Response(HTTP_200=schemas.ApiKey, HTTP_404=schemas.Problem),
        tags=[ACCESS],
    )
    def on_delete(self, req: falcon.Request, resp: falcon.Response, key_id: UUID) -> None:
        """Revoke an API key

        It opens nothing from the next request on, and stays in the list.
        """
        _send_key(resp, api_keys.revoke(str(key_id)))


def _send_key(resp: falcon.Response, key: ApiKey | None) -> None:
    if key is None:
        raise problems.not_found("API key")
    send(resp, show(key))


class AuditLog:
    @route(
        Scope.ADMIN,
        query=schemas.AuditQuery,
        resp=Response(HTTP_200=schemas.AuditPage),
        tags=[ACCESS],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List who did what, newest first"""
        query: schemas.AuditQuery = req.context.query
        filters = query.model_dump(exclude={"cursor", "limit"})
        before_id = paging.decode_id(query.cursor) if query.cursor else None
        found = audit.find(query.limit + 1, before_id=before_id, **filters)
        items = found[: query.limit]
        following = paging.encode(items[-1].id) if len(found) > query.limit else None
        send(resp, schemas.AuditPage(items=[_event(row) for row in items], next=following))


def _event(row: AuditEvent) -> schemas.AuditEvent:
    return schemas.AuditEvent(
        **{name: getattr(row, name) for name in schemas.AuditEvent.model_fields}
    )


def install(app: "falcon.App[Any, Any]") -> None:
    app.add_route("/admin/api-keys", ApiKeyList())
    app.add_route("/admin/api-keys/{key_id:uuid}", ApiKeyItem())
    app.add_route("/admin/audit", AuditLog())
