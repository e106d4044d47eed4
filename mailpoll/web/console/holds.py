"""``/holds``: what may not be deleted, and the forms that hold an account or a message."""

from typing import Any
from uuid import UUID

import falcon

from ...models import Scope
from ..auth import needs
from ..paging import MAX_ID
from . import forms, render
from .base import Page, go

LISTED = 50
#: What was done, by the last part of the address.
VERBS = {"hold": "held", "lift": "lifted"}


class Holds(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        found = self.api(req, resp).get(
            "/admin/holds", cursor=req.get_param("cursor"), limit=LISTED
        )
        render.page(req, resp, "holds.html", holds=found["items"], following=found["next"])


class _Form(Page):
    def change(
        self, req: falcon.Request, resp: falcon.Response, verb: str, page: str, path: str
    ) -> None:
        """Hold or lift what the API knows by ``path``, and go back to its page."""
        if verb not in VERBS:
            raise falcon.HTTPNotFound
        api = self.api(req, resp)
        if verb == "hold":
            api.put(f"{path}/hold", {"reason": forms.read(req).get("reason")})
        else:
            api.delete(f"{path}/hold")
        go(resp, page, VERBS[verb])


class AccountHold(_Form):
    @needs(Scope.ADMIN)
    def on_post(
        self, req: falcon.Request, resp: falcon.Response, account_id: UUID, verb: str
    ) -> None:
        page = f"/accounts/{account_id}"
        self.change(req, resp, verb, page, f"/admin/email-accounts/{account_id}")


class MessageHold(_Form):
    @needs(Scope.ADMIN)
    def on_post(
        self, req: falcon.Request, resp: falcon.Response, message_id: int, verb: str
    ) -> None:
        self.change(req, resp, verb, f"/messages/{message_id}", f"/admin/messages/{message_id}")


def install(app: "falcon.App[Any, Any]") -> None:
    app.add_route("/holds", Holds(app))
    app.add_route("/accounts/{account_id:uuid}/keep/{verb}", AccountHold(app))
    message = f"/messages/{{message_id:int(min=1, max={MAX_ID})}}"
    app.add_route(f"{message}/keep/{{verb}}", MessageHold(app))
