"""``/accounts``: mailboxes; one of them; adding, changing and deleting."""

import itertools
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import falcon

from ... import runtime
from ...crypto import DecryptionError
from ...models import Scope
from .. import account_files
from ..auth import needs, require
from . import connect, forms, render
from .base import Page, go
from .client import Api, Refused

BASE = "/admin/email-accounts"
#: Accounts of a page.
LISTED = 50
#: What can be done to many accounts: the word in the address afterwards, and the scope it needs.
BULK = {
    "poll": ("polled", Scope.OPERATE),
    "pause": ("paused", Scope.OPERATE),
    "resume": ("resumed", Scope.OPERATE),
    "delete": ("deleting", Scope.ADMIN),
}
#: Accounts of a filter to which it is done by one request: pages of the API, and accounts of each.
PAGES, PAGE = 5, 200
VERBS = {"poll": "polled", "pause": "paused", "resume": "resumed", "reconcile": "reconciled"}
#: Fields that an account may leave to the installation.
KEPT = ("retention_days", "retention_expunged_days")
#: Fields that are ticked or not.
CHECKED = ("push", "sync_flags")
#: The most lines of a file of accounts, and its bytes.
LINES, CSV_BYTES = 200, 30_000
#: Seconds between looking at a file and adding what is in it.
SEALED = 3_600
SEAL = "console:accounts"


class Accounts(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        api = self.api(req, resp)
        chosen = {name: req.get_param(name) or "" for name in ("address", "state", "sort")}
        sort = chosen["sort"].removeprefix("-")
        asked = {**chosen, "sort": sort, "descending": sort != chosen["sort"]}
        cursor = req.get_param("cursor")
        found = api.get(BASE, **asked, cursor=cursor, limit=LISTED, figures=True)
        render.page(
            req,
            resp,
            "accounts.html",
            accounts=found["items"],
            following=found["next"],
            paged=bool(cursor or found["next"]),
            chosen=chosen,
            states=api.get("/admin/stats")["accounts"],
        )


class Bulk(Page):
    """One thing done to the accounts that are ticked, or to all of a filter."""

    @needs(Scope.OPERATE)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        form = forms.read(req)
        action, chosen = form.get("action"), list(dict.fromkeys(form.all("id")))
        if action not in BULK:
            raise falcon.HTTPBadRequest(description="choose what to do")
        _, scope = BULK[action]
        require(req, scope)
        if form.get("all") == "yes":
            self._matching(req, resp, form, action)
            return
        if len(chosen) > LISTED:
            raise falcon.HTTPBadRequest(description=f"at most {LISTED} accounts at once")
        api = self.api(req, resp)
        if not chosen:
            go(resp, "/accounts")
        elif action == "delete" and form.get("sure") != "yes":
            accounts = [api.get(f"{BASE}/{_uuid(one)}") for one in chosen]
            render.page(req, resp, "accounts_delete.html", accounts=accounts)
        else:
            done = sum(_done(api, action, _uuid(one)) for one in chosen)
            _over(resp, action, done, len(chosen))

    def _matching(
        self, req: falcon.Request, resp: falcon.Response, form: forms.Form, action: str
    ) -> None:
        """Say first how many there are, and begin only if they are as many still."""
        api = self.api(req, resp)
        chosen = {name: form.get(name) for name in ("address", "state")}
        expected, seen, done = (_amount(form, name) for name in ("expected", "seen", "done"))
        cursor = form.get("cursor")
        if not cursor:
            found = sum(len(page["items"]) for page in _pages(api, chosen))
            sure = form.get("sure") == "yes" and found == expected
            expected = found
        values = {"action": action, "chosen": chosen, "expected": expected}
        if cursor or sure:
            for page in itertools.islice(_pages(api, chosen, cursor), PAGES):
                seen += len(page["items"])
                done += sum(_done(api, action, _uuid(one["id"])) for one in page["items"])
                cursor = page["next"]
            if not cursor:
                _over(resp, action, done, seen)
                return
        render.page(req, resp, "accounts_all.html", **values, seen=seen, done=done, cursor=cursor)


def _amount(form: forms.Form, name: str) -> int:
    text = form.get(name)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def _pages(api: Api, chosen: dict[str, str], cursor: str | None = "") -> Iterator[dict[str, Any]]:
    """The accounts of a filter, in the order in which they were added."""
    while cursor is not None:
        found: dict[str, Any] = api.get(BASE, **chosen, cursor=cursor, limit=PAGE)
        yield found
        cursor = found["next"]


def _over(resp: falcon.Response, action: str, done: int, wanted: int) -> None:
    word, _ = BULK[action]
    if action == "delete":
        go(resp, "/deletions", word if done == wanted else "spared", done)
    else:
        go(resp, "/accounts", word, done)


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise falcon.HTTPBadRequest(description="that is no account") from None


def _done(api: Api, action: str, account: UUID) -> bool:
    """Whether it worked: not if it is gone, paused and should be polled, or held and deleted.

    Nor if it has no server, and should be polled again.
    """
    try:
        if action == "delete":
            api.delete(f"{BASE}/{account}")
        else:
            api.post(f"{BASE}/{account}/{action}")
    except Refused as error:
        if error.status in (404, 409, 422):
            return False
        raise
    return True


class NewAccount(Page):
    @needs(Scope.ADMIN)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._show(req, resp, {})

    @needs(Scope.ADMIN)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        form = forms.read(req)
        api = self.api(req, resp)
        names = ("address", "host", "port", "security", "username", "folders", "poll_interval")
        filled: dict[str, Any] = form.given(*names, "poll_interval_max", "import_since", *KEPT)
        filled |= {name: form.get(name) == "yes" for name in CHECKED}
        step = form.get("do")
        try:
            if step == "find" or (step == "test" and "host" not in filled):
                found = api.post("/admin/discover", {"address": filled.get("address", "")})
                filled |= {name: found[name] for name in ("host", "port", "security")}
                filled.setdefault("username", found["username"] or "")
                if step == "find":
                    self._show(req, resp, filled, place=found)
                    return
            if provider := form.get("connect"):
                fields = _connectable(api, filled, provider)
                connect.begin(req, resp, provider, fields)
                return
            wanted = account_files.account_fields(filled, form.secret("password"))
            if step == "test":
                tested = api.post(f"{BASE}/test", wanted)
                self._show(req, resp, filled, tested=tested)
                return
            account = api.post(BASE, wanted)
        except Refused as error:
            if error.status not in (409, 422):
                raise
            self._show(req, resp, filled, refused=error)
            return
        go(resp, f"/accounts/{account['id']}", "added")

    def _show(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        filled: dict[str, Any],
        place: dict[str, Any] | None = None,
        tested: dict[str, Any] | None = None,
        refused: Refused | None = None,
    ) -> None:
        render.page(
            req,
            resp,
            "account_new.html",
            filled=defaultdict(str, filled),
            place=place,
            tested=tested,
            refused=refused,
            errors=refused.fields if refused else {},
            providers=connect.offered(),
        )
        if refused:
            resp.status = falcon.HTTP_422


def _connectable(api: Api, filled: dict[str, Any], provider: str) -> dict[str, Any]:
    """The fields of an account whose token is still to come, as far as they can be checked.

    Raises:
      Refused: a field does not work, or the account is there already.
    """
    place = {one.name: one.place for one in connect.offered()}.get(provider, {})
    fields = account_files.account_fields(filled, "") | place
    row = {**fields, "refresh_token": "to come"}
    if "host" in fields:  # only then is the provider's client looked at
        row["oauth_provider"] = provider
    (checked,) = api.post(f"{BASE}/import", {"accounts": [row], "dry_run": True})["items"]
    if checked["outcome"] == "refused":
        errors = checked["errors"]
        detail = "; ".join(f"{error['field']}: {error['reason']}" for error in errors)
        raise Refused(422, {"detail": detail, "errors": errors})
    return fields


class ImportAccounts(Page):
    """Many accounts from a file: first it is only looked at."""

    @needs(Scope.ADMIN)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._show(req, resp)

    @needs(Scope.ADMIN)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        form = forms.read(req)
        sealed = form.get("sealed")
        text = _unsealed(sealed) if sealed else (form.secret("file") or form.secret("text"))
        try:
            rows = _rows(text)
            body = {"accounts": rows, "dry_run": not sealed}
            report = self.api(req, resp).post(f"{BASE}/import", body)
        except ValueError as error:
            self._show(req, resp, wrong=str(error))
            return
        except Refused as error:
            self._show(req, resp, wrong=error.detail)
            return
        # The file holds passwords: the page carries it sealed.
        again = "" if sealed else _sealed(text)
        self._show(req, resp, report=report, sealed=again)

    def _show(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        report: dict[str, Any] | None = None,
        sealed: str = "",
        wrong: str = "",
    ) -> None:
        values = {
            "report": report,
            "sealed": sealed,
            "wrong": wrong,
            "columns": account_files.COLUMNS,
        }
        render.page(req, resp, "accounts_import.html", **values)
        if wrong:
            resp.status = falcon.HTTP_422


def _sealed(text: str) -> str:
    return runtime.keyring().encrypt(f"{int(time.time()) + SEALED}:{text}", SEAL)


def _unsealed(value: str) -> str:
    try:
        end, _, text = runtime.keyring().decrypt(value, SEAL).partition(":")
    except DecryptionError:
        raise falcon.HTTPBadRequest(description="choose the file again") from None
    if int(end) < time.time():
        raise falcon.HTTPBadRequest(description="it took too long: choose the file again")
    return text


def _rows(text: str) -> list[dict[str, Any]]:
    """The accounts of a CSV file.

    Raises:
      ValueError: it is none; says why.
    """
    if len(text.encode()) > CSV_BYTES:
        raise ValueError(f"The file is larger than {CSV_BYTES:,} bytes: split it.")
    if not text.replace("\0", "").strip():
        raise ValueError("Choose a file, or paste its lines.")
    found = account_files.accounts_of(text)
    if len(found) > LINES:
        raise ValueError(f"The file should have from 1 to {LINES} accounts.")
    return found


class _OfAccount(Page):
    def show(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        account_id: UUID,
        tested: dict[str, Any] | None = None,
        refused: Refused | None = None,
    ) -> None:
        api = self.api(req, resp)
        account = api.get(f"{BASE}/{account_id}")
        events = api.get("/admin/events", account=account_id, newest=True, limit=8)["items"]
        render.page(
            req,
            resp,
            "account.html",
            account=account,
            stats=api.get(f"{BASE}/{account_id}/stats"),
            events=events,
            provider=connect.offered_for(account),
            tested=tested,
            refused=refused,
        )


class Account(_OfAccount):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        self.show(req, resp, account_id)


class AccountVerb(_OfAccount):
    """Poll, pause, resume, compare, test."""

    @needs(Scope.READ)
    def on_get(
        self, req: falcon.Request, resp: falcon.Response, account_id: UUID, verb: str
    ) -> None:
        """Whoever asks once more for what a form answered, gets the page without it."""
        go(resp, f"/accounts/{account_id}")

    @needs(Scope.OPERATE)
    def on_post(
        self, req: falcon.Request, resp: falcon.Response, account_id: UUID, verb: str
    ) -> None:
        if verb not in (*VERBS, "test"):
            raise falcon.HTTPNotFound
        api = self.api(req, resp)
        try:
            found = api.post(f"{BASE}/{account_id}/{verb}")
        except Refused as error:
            if error.status not in (409, 422):
                raise
            self.show(req, resp, account_id, refused=error)
            resp.status = error.status
            return
        if verb == "test":
            self.show(req, resp, account_id, tested=found)
        else:
            go(resp, f"/accounts/{account_id}", VERBS[verb], 1)


class EditAccount(Page):
    @needs(Scope.ADMIN)
    def on_get(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        account = self.api(req, resp).get(f"{BASE}/{account_id}")
        self._show(req, resp, account, account)

    @needs(Scope.ADMIN)
    def on_post(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        form = forms.read(req)
        api = self.api(req, resp)
        account = api.get(f"{BASE}/{account_id}")
        names = ("host", "port", "security", "username", "folders", "poll_interval")
        filled: dict[str, Any] = {name: form.get(name) for name in names}
        filled |= {name: form.get(name) for name in ("poll_interval_max", *KEPT)}
        new = account_files.account_fields(filled, form.secret("password"))
        new |= {name: form.get(name) == "yes" for name in CHECKED}
        changed = {name: value for name, value in new.items() if value != account.get(name)}
        nullable = ("folders", "poll_interval_max", *KEPT)
        emptied = [name for name in nullable if new.get(name) in (None, [])]
        changed |= {name: None for name in emptied if account[name] is not None}
        changed["test"] = form.get("test") == "yes"
        try:
            api.patch(f"{BASE}/{account_id}", changed)
        except Refused as error:
            if error.status not in (409, 422):
                raise
            shown = account | new | dict.fromkeys(emptied)
            self._show(req, resp, account, shown, error)
            resp.status = falcon.HTTP_422
            return
        go(resp, f"/accounts/{account_id}", "changed")

    def _show(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        account: dict[str, Any],
        filled: dict[str, Any],
        refused: Refused | None = None,
    ) -> None:
        render.page(
            req,
            resp,
            "account_edit.html",
            account=account,
            filled=defaultdict(str, filled),
            refused=refused,
            errors=refused.fields if refused else {},
        )


class DeleteAccount(Page):
    """Asks once more; the form goes to the accounts that are ticked."""

    @needs(Scope.ADMIN)
    def on_get(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        account = self.api(req, resp).get(f"{BASE}/{account_id}")
        render.page(req, resp, "accounts_delete.html", accounts=[account])


class Deletions(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        found = self.api(req, resp).get(
            "/admin/delete-jobs", cursor=req.get_param("cursor"), limit=LISTED
        )
        values = {"jobs": found["items"], "following": found["next"]}
        render.page(req, resp, "deletions.html", **values)


class Deletion(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response, job_id: UUID) -> None:
        job = self.api(req, resp).get(f"/admin/delete-jobs/{job_id}")
        render.page(req, resp, "deletion.html", job=job)


def install(app: "falcon.App[Any, Any]") -> None:
    account = "/accounts/{account_id:uuid}"
    app.add_route("/accounts", Accounts(app))
    app.add_route("/accounts/bulk", Bulk(app))
    app.add_route("/accounts/new", NewAccount(app))
    app.add_route("/accounts/import", ImportAccounts(app))
    app.add_route(account, Account(app))
    app.add_route(f"{account}/edit", EditAccount(app))
    app.add_route(f"{account}/delete", DeleteAccount(app))
    app.add_route(f"{account}/do/{{verb}}", AccountVerb(app))
    app.add_route("/deletions", Deletions(app))
    app.add_route("/deletions/{job_id:uuid}", Deletion(app))
