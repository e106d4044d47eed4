"""``/messages``: stored mail, and ``/failed``: what of it could not be processed."""

import base64
from typing import Any
from uuid import UUID

import falcon

from ...models import Scope
from ..auth import needs
from ..paging import MAX_ID
from . import forms, mail, render
from .base import Page, go, pass_on
from .client import Api, Refused

LISTED = 50
FILTERS = ("status", "folder", "since", "before", "message_id")
#: What may be asked of flags, where they are followed.
MARKS: dict[str, dict[str, Any]] = {
    "unread": {"unseen": True},
    "flagged": {"flag": "\\Flagged"},
    "answered": {"flag": "\\Answered"},
}
#: Bytes of text, headers or source that a page shows; the rest is to be downloaded.
SHOWN = 40_000
#: Bytes of a page that one header takes at most.
HEADER = 2_000
VIEWS = ("html", "text", "headers", "source")


class Messages(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        api = self.api(req, resp)
        chosen = {name: req.get_param(name) or "" for name in FILTERS}
        account, error = req.get_param("account"), req.get_param("error")
        paging = {"cursor": req.get_param("cursor"), "limit": LISTED}
        mark = req.get_param("mark") or ""
        stats, followed = None, False
        if account:
            stats = _stats(api, account)
            base = f"/admin/email-accounts/{stats['account_id']}"
            followed = api.get(base)["sync_flags"]
            found = api.get(f"{base}/messages", **chosen, **MARKS.get(mark, {}), **paging)
        else:
            found = api.get("/admin/messages", status=chosen["status"], error=error, **paging)
        render.page(
            req,
            resp,
            "messages.html",
            messages=found["items"],
            following=found["next"],
            chosen=chosen | {"mark": mark},
            followed=followed,
            account=stats,
            error=error or "",
        )


def _stats(api: Api, account: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = api.get(f"/admin/email-accounts/{UUID(account)}/stats")
    except ValueError:
        raise falcon.HTTPNotFound(description="there is no such account") from None
    return found


class Message(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response, message_id: int) -> None:
        api = self.api(req, resp)
        message = api.get(f"/admin/messages/{message_id}")
        view = req.get_param("view")
        if view not in VIEWS:
            view = "html" if message["html"] else "text"
        remote = req.get_param("remote") == "yes"
        text, headers, blocked = "", [], 0
        match view:
            case "html":
                html = message["html"] or ""
                cut = len(html) > mail.LIMIT
                if not remote:
                    blocked = mail.clean(html, {}, remote=False).remote
            case "headers":
                headers = _shown_headers(message["headers"])
                cut = len(headers) < len(message["headers"])
            case _:
                whole = message["text"] or ""
                if view == "source":
                    raw = api.call("GET", f"/admin/messages/{message_id}/raw").read(SHOWN + 1)
                    whole = raw.decode("utf-8", "replace")
                text = render.beginning(whole, SHOWN)
                cut = text != whole
        render.page(
            req,
            resp,
            "message.html",
            message=message,
            account=api.get(f"/admin/email-accounts/{message['account_id']}"),
            view=view,
            remote=remote,
            headers=headers,
            text=text,
            blocked=blocked,
            cut=cut,
        )


def _shown_headers(headers: list[list[str]]) -> list[list[str]]:
    """The first headers, each in brief, as far as they fit into a page."""
    brief = [[render.brief(name, 200), render.brief(value, HEADER)] for name, value in headers]
    return render.fitting(brief, SHOWN)


class MessageHtml(Page):
    """The HTML of a message, for a frame: cleaned, and with a policy under which nothing runs."""

    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response, message_id: int) -> None:
        api = self.api(req, resp)
        message = api.get(f"/admin/messages/{message_id}")
        remote = req.get_param("remote") == "yes"
        html = message["html"] or ""
        cleaned = mail.clean(html, _pictures(api, message, html), remote=remote)
        resp.content_type = falcon.MEDIA_HTML
        resp.set_header("Content-Security-Policy", mail.policy(remote=remote))
        resp.set_header("Referrer-Policy", "no-referrer")
        resp.text = mail.FRAME.format(body=cleaned.html)


def _pictures(api: Api, message: dict[str, Any], html: str) -> dict[str, str]:
    """The message's own pictures that its HTML names, as ``data:`` addresses."""
    found: dict[str, str] = {}
    room, html = mail.ALL_BYTES, html.lower()
    for one in message["attachments"]:
        name = one["content_id"].strip("<>")
        wanted = name and f"cid:{name}".lower() in html
        fits = one["size"] <= min(room, mail.PICTURE_BYTES)
        if wanted and fits and one["content_type"] in mail.PICTURES:
            path = f"/admin/messages/{message['id']}/attachments/{one['n']}"
            try:
                data = api.call("GET", path).read()
            except Refused:  # the page is worth showing without
                continue
            room -= len(data)
            text = base64.b64encode(data).decode()
            found[name] = f"data:{one['content_type']};base64,{text}"
    return found


class RawMessage(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response, message_id: int) -> None:
        pass_on(resp, self.api(req, resp), f"/admin/messages/{message_id}/raw")


class Attachment(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response, message_id: int, n: int) -> None:
        pass_on(resp, self.api(req, resp), f"/admin/messages/{message_id}/attachments/{n}")


class RetryMessage(Page):
    @needs(Scope.OPERATE)
    def on_post(self, req: falcon.Request, resp: falcon.Response, message_id: int) -> None:
        self.api(req, resp).post(f"/admin/messages/{message_id}/retry")
        go(resp, f"/messages/{message_id}", "retried", 1)


class Failed(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        api = self.api(req, resp)
        groups = api.get("/admin/failed")["items"]
        unfetched = api.get("/admin/stats")["unfetched"]
        render.page(req, resp, "failed.html", groups=groups, unfetched=unfetched)

    @needs(Scope.OPERATE)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        error = (forms.read(req).all("error") or [""])[-1].replace("\r\n", "\n")
        found = self.api(req, resp).post("/admin/failed/retry", {"error": error})
        go(resp, "/failed", "more" if found["more"] else "retried", found["enqueued"])


def install(app: "falcon.App[Any, Any]") -> None:
    message = f"/messages/{{message_id:int(min=1, max={MAX_ID})}}"
    app.add_route("/messages", Messages(app))
    app.add_route(message, Message(app))
    app.add_route(f"{message}/html", MessageHtml(app))
    app.add_route(f"{message}/raw", RawMessage(app))
    app.add_route(f"{message}/attachments/{{n:int(min=0, max=1000000)}}", Attachment(app))
    app.add_route(f"{message}/retry", RetryMessage(app))
    app.add_route("/failed", Failed(app))
