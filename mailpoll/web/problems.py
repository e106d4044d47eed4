"""Errors as RFC 9457 problem documents, in one place. No traceback, SQL or host ever goes out."""

from collections.abc import Sequence
from typing import Any

import falcon
import orjson
import peewee
import redis
import structlog
from playhouse.pool import MaxConnectionsExceeded

from ..accounts import AccountError, AccountExists, AccountGone
from ..blobs import BlobMissing, StoreUnavailable

log = structlog.get_logger()

#: Seconds after which a client may try again when a part of mailpoll is away.
RETRY_AFTER = "5"


def send(
    resp: falcon.Response,
    status: int,
    detail: str | None = None,
    errors: Sequence[dict[str, str]] | None = None,
) -> None:
    """Answer with a problem document; ``errors`` is a list of {"field", "reason"}."""
    title = falcon.code_to_http_status(status).partition(" ")[2]
    document: dict[str, Any] = {"type": "about:blank", "title": title, "status": status}
    if detail:
        document["detail"] = detail
    if errors:
        document["errors"] = list(errors)
    resp.status = status
    resp.content_type = "application/problem+json"
    resp.data = orjson.dumps(document)


def not_found(what: str) -> falcon.HTTPNotFound:
    return falcon.HTTPNotFound(description=f"there is no such {what}")


def field_problem(field: str, reason: str) -> falcon.HTTPUnprocessableEntity:
    """A 422 that names one field."""
    return FieldProblem(field, reason)


class FieldProblem(falcon.HTTPUnprocessableEntity):
    """A value that cannot be used: which, and why."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(description=f"{field}: {reason}")
        self.errors = [{"field": field, "reason": reason}]


def install(app: "falcon.App[Any, Any]") -> None:
    """Map every exception that can reach the top to a status and a problem document."""
    app.set_error_serializer(_serialize)
    app.add_error_handler(Exception, _unexpected)
    app.add_error_handler(falcon.HTTPError, _http)
    app.add_error_handler(AccountError, _account)
    app.add_error_handler(AccountGone, _gone)
    away = (
        peewee.OperationalError,
        peewee.InterfaceError,
        MaxConnectionsExceeded,
        redis.RedisError,
    )
    app.add_error_handler((*away, StoreUnavailable, BlobMissing), _unavailable)


def _serialize(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError) -> None:
    send(resp, error.status_code, error.description, getattr(error, "errors", None))


def _http(req: Any, resp: falcon.Response, error: falcon.HTTPError, params: Any) -> None:
    for name, value in dict(error.headers or {}).items():
        resp.set_header(name, value)
    _serialize(req, resp, error)


def _account(req: Any, resp: falcon.Response, error: AccountError, params: Any) -> None:
    status = 409 if isinstance(error, AccountExists) else 422
    send(resp, status, str(error), [{"field": error.field, "reason": error.reason}])


def _gone(req: Any, resp: falcon.Response, error: AccountGone, params: Any) -> None:
    send(resp, 404, not_found("account").description)


def _unavailable(req: falcon.Request, resp: falcon.Response, error: Exception, params: Any) -> None:
    log.warning("request failed: a part is away", path=req.path, error=type(error).__name__)
    resp.set_header("Retry-After", RETRY_AFTER)
    parts = {"RedisError": "the queue", "StoreUnavailable": "the object store"}
    kinds = {kind.__name__ for kind in type(error).__mro__}
    part = next((name for kind, name in parts.items() if kind in kinds), None)
    if isinstance(error, BlobMissing):
        part = "the stored file"
    send(resp, 503, f"{part or 'the database'} is not available now")


def _unexpected(req: falcon.Request, resp: falcon.Response, error: Exception, params: Any) -> None:
    log.error("request failed", path=req.path, method=req.method, exc_info=error)
    send(resp, 500, "an unexpected error; the log has the details")
