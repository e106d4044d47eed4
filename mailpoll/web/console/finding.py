"""``/search``: messages by their words, and ``/threads/{id}``: those that belong together."""

from typing import Any

import falcon

from ...models import Scope
from ..auth import needs
from ..paging import MAX_ID
from . import render
from .base import Page
from .client import Refused

LISTED = 25
UNREADABLE = 422


class Search(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        names = ("q", "account", "sort", "cursor")
        asked = {name: req.get_param(name) or "" for name in names}
        found: dict[str, Any] = {"items": [], "next": None}
        refused = None
        if asked["q"].strip():
            try:
                found = self.api(req, resp).get("/admin/search", limit=LISTED, **asked)
            except Refused as error:
                if error.status != UNREADABLE:
                    raise
                refused = error
        render.page(
            req,
            resp,
            "search.html",
            hits=found["items"],
            following=found["next"],
            asked=asked,
            refused=refused,
        )


class Thread(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response, thread_id: int) -> None:
        api = self.api(req, resp)
        found = api.get(f"/admin/threads/{thread_id}", cursor=req.get_param("cursor"))
        account = api.get(f"/admin/email-accounts/{found['account_id']}")
        render.page(req, resp, "thread.html", thread=found, account=account)


def install(app: "falcon.App[Any, Any]") -> None:
    app.add_route("/search", Search(app))
    app.add_route(f"/threads/{{thread_id:int(min=1, max={MAX_ID})}}", Thread(app))
