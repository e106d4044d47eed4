"""Dramatiq's dashboard, mounted as a Falcon sink so that it stands behind our authentication.

It has none of its own. It shows and changes queues of everyone, so it is for administrators.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs

import falcon

from .. import audit
from ..broker import Broker
from ..models import Scope
from ..settings import settings
from .auth import require

PREFIX = "/dashboard"
CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
#: What its forms do, as the audit log calls it.
ACTIONS = {"/delete-message": "task.delete", "/requeue-message": "task.retry"}


def install(app: "falcon.App[Any, Any]", broker: Broker) -> None:
    """Mount the dashboard, if it is enabled and its package installed (the ``dashboard`` extra)."""
    if not settings().dashboard:
        return
    try:
        from dramatiq_dashboard import DashboardApp
    except ImportError:
        app.add_sink(_missing, prefix=PREFIX)
        return
    app.add_sink(_sink(DashboardApp(broker, PREFIX)), prefix=PREFIX)


def _missing(req: falcon.Request, resp: falcon.Response, **_: Any) -> None:
    raise falcon.HTTPNotFound(
        description="the dashboard is not installed: pip install 'mailpoll[dashboard]'"
    )


def _sink(dashboard: Any) -> Callable[..., None]:
    def sink(req: falcon.Request, resp: falcon.Response) -> None:
        require(req, Scope.ADMIN)
        _forward(dashboard, req, resp)

    return sink


def _forward(dashboard: Any, req: falcon.Request, resp: falcon.Response) -> None:
    path = req.path.removeprefix(PREFIX) or "/"
    form = req.bounded_stream.read()
    environ = {**req.env, "PATH_INFO": path, "wsgi.input": BytesIO(form)}

    def start_response(status: str, headers: list[tuple[str, str]]) -> None:
        resp.status = status
        for name, value in headers:
            if name.lower() == "set-cookie":
                secure = "; Secure" if req.context.https else ""
                resp.append_header(name, f"{value}; SameSite=Strict{secure}")
            else:
                resp.set_header(name, value)

    try:
        answer = dashboard(environ, start_response)
    except (KeyError, ValueError):  # it takes its forms and cursors as they come
        raise falcon.HTTPBadRequest(description="a field of the form is missing or wrong") from None
    if answer is None:
        raise falcon.HTTPNotFound
    if path in ACTIONS and resp.status_code == 302:
        audit.record(ACTIONS[path], "task", parse_qs(form.decode()).get("id", [""])[0])
    resp.data = b"".join(answer)
    resp.set_header("Content-Security-Policy", CONTENT_POLICY)
