"""Errors as RFC 9457 problem documents, in one place. No traceback, SQL or host ever goes out."""

from collections.abc import Sequence
from typing import Any

import falcon
import orjson
import redis
import structlog

from .. import database
from ..accounts import AccountExists, AccountGone
from ..api_keys import KeyRefused, NameTaken
from ..archives import Unreadable
from ..archives.intake import AccountFull
from ..archives.jobs import ExportRefused
from ..archives.writing import Damaged
from ..blobs import BlobCorrupt, BlobMissing, StoreUnavailable
from ..crypto import DataKeyError
from ..holds import Held
from ..logins import AccountError
from ..webhooks import EndpointError

log = structlog.get_logger()

#: The header that names a request, for clients and in the log.
REQUEST_ID = "X-Request-Id"
#: The environment's key under which the console hands its own request's name to the API.
REQUEST_ID_OF_CONSOLE = "mailpoll.request_id"
#: Seconds after which a client may try again when a part of mailpoll is away.
RETRY_AFTER = "5"


def send(
    resp: falcon.Response,
    status: int,
    detail: str | None = None,
    errors: Sequence[dict[str, Any]] | None = None,
) -> None:
    """Answer with a problem document; ``errors`` is a list of {"field", "reason", "offset"}."""
    title = falcon.code_to_http_status(status).partition(" ")[2]
    document: dict[str, Any] = {"type": "about:blank", "title": title, "status": status}
    if detail:
        document["detail"] = detail
    if errors:
        document["errors"] = list(errors)
    if request_id := resp.get_header(REQUEST_ID):
        document["request_id"] = request_id
    resp.status = status
    resp.content_type = "application/problem+json"
    resp.data = orjson.dumps(document)


def not_found(what: str) -> falcon.HTTPNotFound:
    return falcon.HTTPNotFound(description=f"there is no such {what}")


def field_problem(
    field: str, reason: str, offset: int | None = None
) -> falcon.HTTPUnprocessableEntity:
    """A 422 that names one field, and the character in it where it goes wrong."""
    return FieldProblem(field, reason, offset)


class FieldProblem(falcon.HTTPUnprocessableEntity):
    """A value that cannot be used: which, why, and where in it."""

    def __init__(self, field: str, reason: str, offset: int | None = None) -> None:
        at = "" if offset is None else f" (at character {offset})"
        super().__init__(description=f"{field}: {reason}{at}")
        self.errors: list[dict[str, Any]] = [{"field": field, "reason": reason}]
        if offset is not None:
            self.errors[0]["offset"] = offset


def install(app: "falcon.App[Any, Any]") -> None:
    """Map every exception that can reach the top to a status and a problem document."""
    app.set_error_serializer(_serialize)
    app.add_error_handler(Exception, _unexpected)
    app.add_error_handler(falcon.HTTPError, _http)
    app.add_error_handler(AccountError, _refused)
    app.add_error_handler(EndpointError, _refused)
    app.add_error_handler(KeyRefused, _refused)
    app.add_error_handler(AccountGone, _gone)
    app.add_error_handler(Held, _held)
    app.add_error_handler((Unreadable, AccountFull, Damaged, ExportRefused), _impossible)
    away = (*database.AWAY, redis.RedisError, StoreUnavailable)
    stored = (BlobMissing, BlobCorrupt, DataKeyError)
    app.add_error_handler((*away, *stored), _unavailable)


def _serialize(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError) -> None:
    send(resp, error.status_code, error.description, getattr(error, "errors", None))


def _http(req: Any, resp: falcon.Response, error: falcon.HTTPError, params: Any) -> None:
    for name, value in dict(error.headers or {}).items():
        resp.set_header(name, value)
    _serialize(req, resp, error)


def _refused(
    req: Any, resp: falcon.Response, error: AccountError | EndpointError | KeyRefused, params: Any
) -> None:
    status = 409 if isinstance(error, AccountExists | NameTaken) else 422
    send(resp, status, str(error), [{"field": error.field, "reason": error.reason}])


def _impossible(req: Any, resp: falcon.Response, error: Exception, params: Any) -> None:
    send(resp, 422 if isinstance(error, Unreadable) else 409, str(error))


def _gone(req: Any, resp: falcon.Response, error: AccountGone, params: Any) -> None:
    send(resp, 404, not_found("account").description)


def _held(req: Any, resp: falcon.Response, error: Held, params: Any) -> None:
    send(resp, 409, str(error))


def _unavailable(req: falcon.Request, resp: falcon.Response, error: Exception, params: Any) -> None:
    kind = type(error).__name__
    name = resp.get_header(REQUEST_ID)
    log.warning("request failed: a part is away", request=name, path=req.path, error=kind)
    resp.set_header("Retry-After", RETRY_AFTER)
    parts = {
        "RedisError": "the queue",
        "StoreUnavailable": "the object store",
        "BlobMissing": "the stored file",
        "BlobCorrupt": "the stored file",
        "DataKeyError": "the key of the stored file",
    }
    kinds = {kind.__name__ for kind in type(error).__mro__}
    part = next((name for kind, name in parts.items() if kind in kinds), None)
    send(resp, 503, f"{part or 'the database'} is not available now")


def _unexpected(req: falcon.Request, resp: falcon.Response, error: Exception, params: Any) -> None:
    name = resp.get_header(REQUEST_ID)
    log.error("request failed", request=name, path=req.path, method=req.method, exc_info=error)
    send(resp, 500, "an unexpected error; the log has the details")
