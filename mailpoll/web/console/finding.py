"""``/search``: messages by their words, ``/threads/{id}``: those that belong together, and the
attachments of an account."""

from typing import Any
from uuid import UUID

import falcon

from ...models import Scope
from ..auth import needs
from ..paging import MAX_ID
from . import render
from .base import Page
from .client import Refused

LISTED = 25
UNREADABLE = 422
#: What attachments are asked for: the beginning of their type, and words for it.
KINDS = (
    ("", "Any"),
    ("application/pdf", "PDF"),
    ("image/", "Pictures"),
    ("text/", "Text"),
    ("message/", "Messages"),
    ("audio/", "Sound"),
    ("video/", "Film"),
)


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


class Attachments(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        api = self.api(req, resp)
        base = f"/admin/email-accounts/{account_id}"
        asked = {name: req.get_param(name) or "" for name in ("name", "type", "cursor")}
        found = api.get(f"{base}/attachments", limit=LISTED, **asked)
        render.page(
            req,
            resp,
            "attachments.html",
            account=api.get(base),
            found=found["items"],
            following=found["next"],
            asked=asked,
            kinds=KINDS,
        )


def install(app: "falcon.App[Any, Any]") -> None:
    app.add_route("/search", Search(app))
    app.add_route("/accounts/{account_id:uuid}/attachments", Attachments(app))
    app.add_route(f"/threads/{{thread_id:int(min=1, max={MAX_ID})}}", Thread(app))
