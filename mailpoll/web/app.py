"""The web application: routes, errors, and the dashboard behind the same authentication."""

import json
import threading
from typing import Any, cast
from uuid import uuid4

import dramatiq
import falcon
import orjson
from falcon.media import JSONHandler

from .. import alarms
from ..broker import Broker
from ..settings import settings
from . import (
    access,
    accounts,
    archives,
    attachments,
    dashboard,
    documents,
    events,
    failures,
    holds,
    messages,
    operations,
    problems,
    search,
    webhooks,
)
from .auth import Authentication
from .console import routes

#: Bytes of a request's body; ours are all small.
BODY_LIMIT = 1_000_000


class RequestId:
    """Gives each request a name, by which what a client was told is found in the log."""

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        # Of the console's requests to the API, which a client cannot set.
        given = req.env.get(problems.REQUEST_ID_OF_CONSOLE)
        resp.set_header(problems.REQUEST_ID, given or str(uuid4()))


class BodyLimit:
    """Refuse large bodies before anything reads them."""

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        upload = req.method == "POST" and archives.is_import(req.path)
        limit = settings().import_bytes if upload else BODY_LIMIT
        if req.content_length is not None and req.content_length > limit:
            raise falcon.HTTPContentTooLarge(description=f"the limit is {limit} bytes")
        if req.get_header("Transfer-Encoding"):
            raise falcon.HTTPLengthRequired(description="give a Content-Length")


def serve() -> "falcon.App[Any, Any]":
    """The application of a web process, which also keeps watch over the scheduler.

    Raises:
      SettingsError: a variable that the web process needs is missing.
    """
    app = create_app()
    watched = (cast(Broker, dramatiq.get_broker()), threading.Event())
    threading.Thread(target=alarms.keep_watch, args=watched, name="alarms", daemon=True).start()
    return app


def create_app() -> "falcon.App[Any, Any]":
    """The WSGI application.

    Raises:
      SettingsError: a variable that the web process needs is missing.
    """
    app: falcon.App[Any, Any] = falcon.App(
        middleware=[RequestId(), Authentication(settings()), BodyLimit()]
    )
    install_all(app)
    return app


def install_all(app: "falcon.App[Any, Any]") -> None:
    """Add all routes, of which the OpenAPI document is made."""
    handler = JSONHandler(dumps=orjson.dumps, loads=_loads)
    # JSON only: a form that another site posts must not pass for it.
    app.req_options.media_handlers = falcon.media.Handlers({falcon.MEDIA_JSON: handler})
    app.resp_options.media_handlers[falcon.MEDIA_JSON] = handler
    problems.install(app)
    accounts.install(app)
    messages.install(app)
    holds.install(app)
    search.install(app)
    archives.install(app)
    attachments.install(app)
    failures.install(app)
    events.install(app, settings().web_threads)
    webhooks.install(app)
    broker = cast(Broker, dramatiq.get_broker())
    operations.install(app, broker)
    access.install(app)
    dashboard.install(app, broker)
    routes.install(app)
    documents.install(app)


def _loads(body: str | bytes) -> Any:
    """JSON to the letter (RFC 8259), and no name twice: two readers may believe different ones.

    Raises:
      ValueError: it is not.
    """
    value = orjson.loads(body)
    try:
        json.loads(body, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found
