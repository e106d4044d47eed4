"""The web application: routes, errors, and the dashboard behind the same authentication."""

from typing import Any, cast

import dramatiq
import falcon
import orjson
from falcon.media import JSONHandler

from ..broker import Broker
from ..settings import settings
from . import accounts, dashboard, documents, messages, operations, problems
from .auth import Authentication

#: Bytes of a request's body; ours are all small.
BODY_LIMIT = 1_000_000


class BodyLimit:
    """Refuse large bodies before anything reads them."""

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        if req.content_length is not None and req.content_length > BODY_LIMIT:
            raise falcon.HTTPContentTooLarge(description=f"the limit is {BODY_LIMIT} bytes")
        if req.get_header("Transfer-Encoding"):
            raise falcon.HTTPLengthRequired(description="give a Content-Length")


def create_app() -> "falcon.App[Any, Any]":
    """The WSGI application.

    Raises:
      SettingsError: a variable that the web process needs is missing.
    """
    app: falcon.App[Any, Any] = falcon.App(
        middleware=[Authentication(settings().require_tokens()), BodyLimit()]
    )
    json = JSONHandler(dumps=orjson.dumps, loads=orjson.loads)
    # JSON only: a form that another site posts must not pass for it.
    app.req_options.media_handlers = falcon.media.Handlers({falcon.MEDIA_JSON: json})
    app.resp_options.media_handlers[falcon.MEDIA_JSON] = json
    problems.install(app)
    accounts.install(app)
    messages.install(app)
    broker = cast(Broker, dramatiq.get_broker())
    operations.install(app, broker)
    dashboard.install(app, broker)
    documents.install(app)
    return app
