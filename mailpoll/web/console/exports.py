"""``/exports``: archives of mailboxes, made in the background and downloaded."""

from collections import defaultdict
from typing import Any
from uuid import UUID

import falcon

from ...models import Scope
from ..auth import needs
from . import forms, render
from .base import Page, go, pass_on
from .client import Refused

BASE = "/admin/exports"
LISTED = 50
FORMATS = (
    ("mbox", "mbox: one file"),
    ("zip", "zip: a file for each message"),
    ("maildir", "Maildir, as a tar"),
    ("manifest", "The list of messages alone"),
)


class Exports(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        found = self.api(req, resp).get(BASE, cursor=req.get_param("cursor"), limit=LISTED)
        render.page(req, resp, "exports.html", exports=found["items"], following=found["next"])


class NewExport(Page):
    @needs(Scope.OPERATE)
    def on_get(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        self._show(req, resp, account_id, {"q": req.get_param("q") or ""})

    @needs(Scope.OPERATE)
    def on_post(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        chosen = forms.read(req).given("format", "folder", "q", "since", "until")
        wanted = {**chosen, "account_id": str(account_id)}
        try:
            export = self.api(req, resp).post(BASE, wanted)
        except Refused as error:
            if error.status not in (409, 422):
                raise
            self._show(req, resp, account_id, chosen, error)
            resp.status = falcon.HTTP_422
            return
        go(resp, f"/exports/{export['id']}")

    def _show(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        account_id: UUID,
        filled: dict[str, str],
        refused: Refused | None = None,
    ) -> None:
        render.page(
            req,
            resp,
            "export_new.html",
            account=self.api(req, resp).get(f"/admin/email-accounts/{account_id}"),
            formats=FORMATS,
            filled=defaultdict(str, filled),
            refused=refused,
            errors=refused.fields if refused else {},
        )


class Export(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response, export_id: UUID) -> None:
        api = self.api(req, resp)
        export = api.get(f"{BASE}/{export_id}")
        account = api.get(f"/admin/email-accounts/{export['account_id']}")
        render.page(req, resp, "export.html", export=export, account=account)


class ExportDownload(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response, export_id: UUID) -> None:
        pass_on(resp, self.api(req, resp), f"{BASE}/{export_id}/download")


class RemoveExport(Page):
    @needs(Scope.OPERATE)
    def on_post(self, req: falcon.Request, resp: falcon.Response, export_id: UUID) -> None:
        self.api(req, resp).delete(f"{BASE}/{export_id}")
        go(resp, "/exports", "export_removed")


def install(app: "falcon.App[Any, Any]") -> None:
    app.add_route("/exports", Exports(app))
    app.add_route("/accounts/{account_id:uuid}/export", NewExport(app))
    app.add_route("/exports/{export_id:uuid}", Export(app))
    app.add_route("/exports/{export_id:uuid}/download", ExportDownload(app))
    app.add_route("/exports/{export_id:uuid}/remove", RemoveExport(app))
