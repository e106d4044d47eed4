"""The console's routes, its login, and its pages for what goes wrong."""

from typing import Any

import falcon
import orjson

from ...models import Scope
from .. import sessions
from ..auth import needs
from . import accounts, connect, exports, finding, holds, messages, operations, overview, render
from .client import Refused

PROBLEM = "application/problem+json"


class Login:
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.status = falcon.HTTP_303
        resp.location = sessions.local(req.get_param("next") or "/")

    @needs(Scope.READ)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        sessions.begin(req, resp, getattr(req.context, "login_target", "/"))


class Logout:
    @needs(Scope.READ)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        sessions.end(resp)


class Problems:
    """Falcon middleware: what goes wrong with a page is shown as one, not as JSON."""

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, resource: Any, succeeded: bool
    ) -> None:
        if resp.content_type == PROBLEM and sessions.wants_page(req):
            _show(req, resp, resp.status_code, orjson.loads(resp.data or b"{}"))


def _refused(req: falcon.Request, resp: falcon.Response, error: Refused, params: Any) -> None:
    resp.status = error.status
    problem = {"title": falcon.code_to_http_status(error.status)[4:], "detail": error.detail}
    _show(req, resp, error.status, problem)


def _show(req: falcon.Request, resp: falcon.Response, status: int, problem: dict[str, Any]) -> None:
    values = {"status": status, "title": problem.get("title"), "detail": problem.get("detail")}
    resp.data = None
    if getattr(req.context, "caller", None) is None:
        values |= {"request_id": resp.get_header("X-Request-Id")}
        render.bare(resp, "error_bare.html", **values)
    else:
        render.page(req, resp, "error.html", **values)


def install(app: "falcon.App[Any, Any]") -> None:
    app.add_middleware(Problems())
    app.add_error_handler(Refused, _refused)
    app.add_sink(render.assets_sink, prefix=render.ASSETS)
    app.add_route("/", overview.Overview(app))
    app.add_route(sessions.LOGIN, Login())
    app.add_route(sessions.LOGOUT, Logout())
    accounts.install(app)
    connect.install(app)
    exports.install(app)
    messages.install(app)
    finding.install(app)
    holds.install(app)
    operations.install(app)
