"""``/tasks``, ``/webhooks``, ``/keys``, ``/audit``, ``/settings``."""

import itertools
from collections import defaultdict
from typing import Any
from uuid import UUID

import falcon

from ...models import EventType, Payload, Scope
from ...settings import settings
from ..account_files import account_fields
from ..auth import needs
from ..paging import MAX_ID
from . import forms, render
from .base import Page, go
from .client import Api, Refused

LISTED = 50
HOOKS = "/admin/webhooks"


class Tasks(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        found = self.api(req, resp).get("/admin/tasks")
        dead = itertools.islice(found["dead"], LISTED)
        shown = settings().dashboard
        render.page(req, resp, "tasks.html", found=found, dead=list(dead), dashboard=shown)


class RetryTask(Page):
    @needs(Scope.OPERATE)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        task = forms.read(req).get("task")
        if not task or "/" in task or not task.isprintable():
            raise falcon.HTTPBadRequest(description="that is no task")
        self.api(req, resp).post(f"/admin/tasks/dead/{task}/retry")
        go(resp, "/tasks", "task")


class Webhooks(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        found = self.api(req, resp).get(HOOKS)
        render.page(req, resp, "webhooks.html", hooks=found["items"])


class NewWebhook(Page):
    @needs(Scope.ADMIN)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._show(req, resp, {}, None)

    @needs(Scope.ADMIN)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        form = forms.read(req)
        filled: dict[str, Any] = form.given("url", "description", "payload")
        types = form.all("types")
        filled |= {"types": types} if types else {}
        filled["imports"] = form.get("imports") == "yes"
        try:
            hook = self.api(req, resp).post(HOOKS, account_fields(filled, ""))
        except Refused as error:
            if error.status != 422:
                raise
            self._show(req, resp, filled, error)
            resp.status = falcon.HTTP_422
            return
        render.page(req, resp, "secret.html", hook=hook, key=None)

    def _show(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        filled: dict[str, Any],
        refused: Refused | None,
    ) -> None:
        values: dict[str, Any] = {"filled": defaultdict(str, filled), "refused": refused}
        values |= {"types": list(EventType), "payloads": list(Payload)}
        values["errors"] = refused.fields if refused else {}
        render.page(req, resp, "webhook_new.html", **values)


class _OfWebhook(Page):
    def show(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        api: Api,
        hook_id: UUID,
        sent: dict[str, Any] | None = None,
        refused: Refused | None = None,
    ) -> None:
        outcome = req.get_param("outcome") or ""
        log = api.get(
            f"{HOOKS}/{hook_id}/deliveries",
            cursor=req.get_param("cursor"),
            outcome=outcome,
            limit=25,
        )
        render.page(
            req,
            resp,
            "webhook.html",
            hook=api.get(f"{HOOKS}/{hook_id}"),
            deliveries=log["items"],
            following=log["next"],
            outcome=outcome,
            sent=sent,
            refused=refused,
        )


class Webhook(_OfWebhook):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response, hook_id: UUID) -> None:
        self.show(req, resp, self.api(req, resp), hook_id)


class WebhookVerb(_OfWebhook):
    """Test, redeliver, replay; pause, resume, a new secret and removal ask for an administrator."""

    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response, hook_id: UUID, verb: str) -> None:
        """Whoever asks once more for what a form answered, gets the page without it."""
        go(resp, f"/webhooks/{hook_id}")

    @needs(Scope.OPERATE)
    def on_post(self, req: falcon.Request, resp: falcon.Response, hook_id: UUID, verb: str) -> None:
        form, api, base = forms.read(req), self.api(req, resp), f"{HOOKS}/{hook_id}"
        here = f"/webhooks/{hook_id}"
        try:
            match verb:
                case "test":
                    self.show(req, resp, api, hook_id, sent=api.post(f"{base}/test"))
                case "redeliver" if (number := form.get("event")).isdecimal():
                    sent = api.post(f"{base}/events/{min(int(number[:20]), MAX_ID)}/redeliver")
                    self.show(req, resp, api, hook_id, sent=sent)
                case "replay":
                    api.post(f"{base}/replay", {"since": form.get("since")})
                    go(resp, here, "replayed")
                case "pause" | "resume":
                    state = "paused" if verb == "pause" else "active"
                    api.patch(base, {"state": state})
                    go(resp, here, "webhook")
                case "secret":
                    hook = api.post(f"{base}/secret")
                    render.page(req, resp, "secret.html", hook=hook, key=None)
                case "delete":
                    api.delete(base)
                    go(resp, "/webhooks", "removed")
                case _:
                    raise falcon.HTTPNotFound
        except Refused as error:
            if error.status != 422:
                raise
            self.show(req, resp, api, hook_id, refused=error)
            resp.status = falcon.HTTP_422


class Keys(Page):
    @needs(Scope.ADMIN)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._show(req, resp, {}, None)

    @needs(Scope.ADMIN)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        form = forms.read(req)
        filled = form.given("name", "scope", "expires_at")
        try:
            key = self.api(req, resp).post("/admin/api-keys", filled)
        except Refused as error:
            if error.status not in (409, 422):
                raise
            self._show(req, resp, filled, error)
            resp.status = falcon.HTTP_422
            return
        render.page(req, resp, "secret.html", key=key, hook=None)

    def _show(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        filled: dict[str, str],
        refused: Refused | None,
    ) -> None:
        cursor = req.get_param("cursor") if req.method == "GET" else None
        found = self.api(req, resp).get("/admin/api-keys", cursor=cursor, limit=LISTED)
        render.page(
            req,
            resp,
            "keys.html",
            keys=found["items"],
            following=found["next"],
            filled=defaultdict(str, filled),
            refused=refused,
            errors=refused.fields if refused else {},
        )


class RevokeKey(Page):
    @needs(Scope.ADMIN)
    def on_post(self, req: falcon.Request, resp: falcon.Response, key_id: UUID) -> None:
        self.api(req, resp).delete(f"/admin/api-keys/{key_id}")
        go(resp, "/keys", "revoked")


class Audit(Page):
    @needs(Scope.ADMIN)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        names = ("who", "action", "target", "since", "before")
        chosen = {name: req.get_param(name) or "" for name in names}
        found = self.api(req, resp).get(
            "/admin/audit", **chosen, cursor=req.get_param("cursor"), limit=LISTED
        )
        values = {"events": found["items"], "following": found["next"], "chosen": chosen}
        render.page(req, resp, "audit.html", **values)


class Settings(Page):
    @needs(Scope.ADMIN)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        found = self.api(req, resp).get("/admin/settings")
        render.page(req, resp, "settings.html", found=found)


def install(app: "falcon.App[Any, Any]") -> None:
    hook = "/webhooks/{hook_id:uuid}"
    app.add_route("/tasks", Tasks(app))
    app.add_route("/tasks/retry", RetryTask(app))
    app.add_route("/webhooks", Webhooks(app))
    app.add_route("/webhooks/new", NewWebhook(app))
    app.add_route(hook, Webhook(app))
    app.add_route(f"{hook}/do/{{verb}}", WebhookVerb(app))
    app.add_route("/keys", Keys(app))
    app.add_route("/keys/{key_id:uuid}/revoke", RevokeKey(app))
    app.add_route("/audit", Audit(app))
    app.add_route("/settings", Settings(app))
