"""Dramatiq's dashboard, mounted as a Falcon sink so that it stands behind our authentication."""

from collections.abc import Callable
from typing import Any

import falcon

from ..broker import Broker

PREFIX = "/dashboard"
CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def install(app: "falcon.App[Any, Any]", broker: Broker) -> None:
    """Mount the dashboard, where its package is installed (the ``dashboard`` extra)."""
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
        environ = {**req.env, "PATH_INFO": req.path.removeprefix(PREFIX) or "/"}

        def start_response(status: str, headers: list[tuple[str, str]]) -> None:
            resp.status = status
            for name, value in headers:
                if name.lower() == "set-cookie":
                    resp.append_header(name, f"{value}; SameSite=Strict")
                else:
                    resp.set_header(name, value)

        try:
            answer = dashboard(environ, start_response)
        except (KeyError, ValueError):  # it takes its forms and cursors as they come
            raise falcon.HTTPBadRequest(
                description="a field of the form is missing or wrong"
            ) from None
        if answer is None:
            raise falcon.HTTPNotFound
        resp.data = b"".join(answer)
        resp.set_header("Content-Security-Policy", CONTENT_POLICY)

    return sink
