"""The web console: pages for each scope, forms from here alone, and mail that stays harmless."""

import re
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import falcon.testing
import pytest

from mailpoll import alarms, database
from mailpoll.models import (
    AccountState,
    EmailAccount,
    EmailDamage,
    EmailFolder,
    EmailRawMessage,
    EndpointState,
    MessageStatus,
    WebhookEndpoint,
)
from mailpoll.web import sessions
from mailpoll.web.console import accounts, mail, overview, render
from tests.integration.archived import finished
from tests.integration.rows import change_accounts, change_messages
from tests.integration.system import KEY, PASSWORD, TOKEN, System, message
from tests.integration.test_auth import ID, ORIGIN
from tests.integration.test_dashboard import FORM
from tests.integration.test_flags import client
from tests.integration.test_tasks import make_dead, queue
from tests.security.test_api_keys import new_key

HTML = {"Accept": "text/html,application/xhtml+xml"}
PAGES = ["/", "/accounts", "/messages", "/search", "/failed", "/tasks", "/webhooks", "/deletions"]
PAGES += ["/holds", "/exports"]
ADMIN_PAGES = ["/accounts/new", "/accounts/import", "/webhooks/new", "/keys", "/audit", "/settings"]
#: Breaks out of text, of attributes and of scripts, if it can.
HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}"


class Browser:
    """Somebody who has logged in, and fills in forms as a browser sends them."""

    def __init__(self, system: System, token: str = TOKEN, **headers: str) -> None:
        client = falcon.testing.TestClient(system.api.app, headers=HTML)
        more = {"Content-Type": FORM, "Origin": ORIGIN}
        answer = client.simulate_post("/login", body=urlencode({"token": token}), headers=more)
        assert answer.status_code == 303, answer.text
        cookie = answer.headers["set-cookie"].partition(";")[0]
        given = {**HTML, "Cookie": cookie, "Origin": ORIGIN, **headers}
        self.client = falcon.testing.TestClient(system.api.app, headers=given)

    def get(self, path: str, status: int = 200) -> str:
        answer = self.client.simulate_get(path)
        assert answer.status_code == status, answer.text
        return str(answer.text)

    def post(self, path: str, status: int = 303, **fields: Any) -> falcon.testing.Result:
        body = urlencode(fields, doseq=True)
        headers = {"Content-Type": FORM}
        answer = self.client.simulate_post(path, body=body, headers=headers)
        assert answer.status_code == status, answer.text
        return answer


def get(browser: Browser, path: str, **params: Any) -> str:
    answer = browser.client.simulate_get(path, params=params)
    assert answer.status_code == 200, answer.text
    return str(answer.text)


def filled(system: System, address: str, *mails: bytes) -> str:
    """An account that was polled; its id."""
    for one in mails or [message("hello")]:
        system.dovecot.deliver(address, one)
    account = system.add_account(address)
    system.poll_and_process(account)
    return account


def pages_of(system: System, account: str) -> list[str]:
    """Everything there is to see of an account and its first message."""
    (mail_id, thread), *_ = [(one["id"], one["thread_id"]) for one in system.messages(account)]
    return [
        f"/threads/{thread}",
        f"/accounts/{account}",
        f"/accounts/{account}/attachments",
        f"/messages/{mail_id}",
        f"/messages/{mail_id}/html",
    ]


# --- search


def test_what_is_searched_for_is_found_marked_and_escaped(system: System, address: str) -> None:
    subject = f"Invoice {HOSTILE}"
    system.dovecot.deliver(address, message(subject, "The sum of <b>October</b>\r\n"))
    system.dovecot.deliver(address, message("Lunch", "Nothing of that\r\n"))
    account = system.add_account(address)
    system.poll_and_process(account)
    browser = Browser(system)
    page = browser.get("/search?q=invoice+october")
    assert "<mark>Invoice</mark>" in page
    assert "&lt;b&gt;<mark>October</mark>" in page
    assert "Lunch" not in page
    assert "<script>alert" not in page
    assert "No message has all of that" in browser.get(f"/search?q=nowhere&account={account}")
    # A query that cannot be read is shown again, with where it is wrong
    page = browser.get("/search?q=%22open")
    assert 'role="alert"' in page
    assert 'value="&#34;open"' in page
    (found,) = [one for one in system.messages(account) if one["subject"] == "Lunch"]
    assert "Lunch" in browser.get(f"/threads/{found['thread_id']}")


def test_what_a_search_finds_in_a_mailbox_is_exported(system: System, address: str) -> None:
    account = filled(system, address, message("Invoice"), message("Lunch"))
    browser = Browser(system)
    path = f"/accounts/{account}/export"
    assert f"{path}?q=invoice" in browser.get(f"/search?q=invoice&account={account}")
    assert 'value="invoice"' in browser.get(f"{path}?q=invoice")
    answer = browser.post(path, format="mbox", q="invoice")
    shown = browser.get(answer.headers["location"])
    assert "It is being made" in shown
    assert " of " not in shown.partition("<dt>Messages</dt>")[2].partition("</dd>")[0]
    page = browser.post(path, 422, format="mbox", q="is:nonsense").text
    assert 'aria-invalid="true"' in page
    finished(system, answer.headers["location"].rpartition("/")[2])


# --- who may see what


def test_every_page_answers_for_its_scope_or_refuses(system: System, address: str) -> None:
    account = filled(system, address)
    hook = system.post("/admin/webhooks", 201, url="https://example.org/hook")["id"]
    pages = [*PAGES, *pages_of(system, account), f"/webhooks/{hook}"]
    for_admins = [*ADMIN_PAGES, f"/accounts/{account}/edit", f"/accounts/{account}/delete"]
    for scope in ("read", "operate", "admin"):
        browser = Browser(system, new_key(system, scope)["token"])
        for path in pages:
            browser.get(path)
        for path in for_admins:
            text = browser.get(path, 200 if scope == "admin" else 403)
            assert text.startswith("<!doctype html>")
            assert scope == "admin" or "scope admin" in text


def test_what_a_key_may_not_do_is_not_offered(system: System, address: str) -> None:
    account = filled(system, address)
    change_messages(status=MessageStatus.FAILED, error="it is broken")
    readers = Browser(system, new_key(system, "read")["token"])
    for path in (*PAGES, *pages_of(system, account)):
        forms = re.findall(r'<form[^>]*method="post"[^>]*action="([^"]*)"', readers.get(path))
        assert set(forms) <= {"/logout"}, path
    change_messages(status=MessageStatus.PROCESSED, error=None)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/accounts/bulk", {"action": "poll", "id": ID}),
        (f"/accounts/{ID}/do/poll", {}),
        ("/messages/1/retry", {}),
        ("/messages/1/keep/hold", {"reason": "x"}),
        (f"/accounts/{ID}/keep/lift", {}),
        ("/failed", {"error": "x"}),
        ("/tasks/retry", {"task": "x"}),
        (f"/webhooks/{ID}/do/test", {}),
        ("/accounts/new", {"address": "me@example.org"}),
        ("/accounts/import", {"text": "address\nme@example.org"}),
        (f"/accounts/{ID}/edit", {}),
        (f"/accounts/{ID}/connect", {}),
        ("/accounts/connect/google/finish", {}),
        ("/webhooks/new", {"url": "https://example.org"}),
        ("/keys", {"name": "x", "scope": "admin"}),
        (f"/keys/{ID}/revoke", {}),
    ],
)
def test_a_key_for_reading_changes_nothing(
    embedded: System, path: str, fields: dict[str, str]
) -> None:
    Browser(embedded, new_key(embedded, "read")["token"]).post(path, 403, **fields)


def test_an_operator_deletes_nothing(embedded: System, address: str) -> None:
    account = embedded.add_account(address)
    browser = Browser(embedded, new_key(embedded, "operate")["token"])
    browser.post("/accounts/bulk", 403, action="delete", sure="yes", id=account)
    assert embedded.get(f"/admin/email-accounts/{account}")["state"] == "active"


@pytest.mark.parametrize("path", [*PAGES, *ADMIN_PAGES, "/accounts/x", "/messages/1/html"])
def test_a_stranger_is_sent_to_the_login(embedded: System, path: str) -> None:
    client = falcon.testing.TestClient(embedded.api.app, headers=HTML)
    answer = client.simulate_get(path)
    assert answer.status_code == 303
    target = urlsplit(answer.headers["location"])
    assert target.path == "/login"
    assert parse_qs(target.query).get("next", ["/"]) == [path]
    assert client.simulate_post(path).status_code == 303


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "\\/evil.example",
        "/\t/evil.example",
        "javascript:alert(1)",
        "accounts",
        "/a\r\nSet-Cookie: x=1",
        "http://[",
        "",
    ],
)
def test_a_login_leads_to_no_other_place(embedded: System, target: str) -> None:
    assert sessions.local(target) == "/"
    client = falcon.testing.TestClient(embedded.api.app, headers=HTML)
    body = urlencode({"token": TOKEN, "next": target})
    headers = {"Content-Type": FORM, "Origin": ORIGIN}
    answer = client.simulate_post("/login", body=body, headers=headers)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_a_login_leads_to_where_one_wanted_to_go(embedded: System) -> None:
    client = falcon.testing.TestClient(embedded.api.app, headers=HTML)
    asked = client.simulate_get("/messages", params={"status": "failed"})
    form = client.simulate_get(asked.headers["location"])
    (target,) = re.findall(r'name="next" value="([^"]+)"', form.text)
    assert target == "/messages?status=failed"
    headers = {"Content-Type": FORM, "Origin": ORIGIN}
    body = urlencode({"token": TOKEN, "next": target})
    answer = client.simulate_post("/login", body=body, headers=headers)
    assert answer.headers["location"] == target


# --- other sites


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"},
        {"Origin": ORIGIN, "Sec-Fetch-Site": "same-site"},
        {"Origin": ""},
    ],
)
def test_a_form_of_another_site_does_nothing(
    embedded: System, address: str, headers: dict[str, str]
) -> None:
    account = embedded.add_account(address)
    browser = Browser(embedded, **headers)
    for path, fields in (
        (f"/accounts/{account}/do/pause", {}),
        ("/accounts/bulk", {"action": "delete", "sure": "yes", "id": account}),
        ("/keys", {"name": "evil", "scope": "admin"}),
        ("/logout", {}),
    ):
        browser.post(path, 403, **fields)
    assert embedded.get(f"/admin/email-accounts/{account}")["state"] == "active"
    assert embedded.get("/admin/api-keys")["items"] == []


def test_every_page_loads_nothing_from_elsewhere_and_is_framed_by_nobody(
    system: System, address: str
) -> None:
    account = filled(system, address)
    browser = Browser(system)
    for path in ["/login", *PAGES, *ADMIN_PAGES, *pages_of(system, account)[:2]]:
        answer = browser.client.simulate_get(path)
        if path == "/login":
            answer = falcon.testing.TestClient(system.api.app, headers=HTML).simulate_get(path)
        policy = answer.headers["content-security-policy"]
        assert policy == render.CONTENT_POLICY
        assert "unsafe" not in policy
        assert not re.search(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//""", answer.text)
        assert not re.search(r"<[^>]*\s(?:style|on\w+)=", answer.text), path
        assert "<script>" not in answer.text
        assert answer.headers["cache-control"] == "no-store"
        assert len(answer.content) < 100_000


@pytest.mark.parametrize("letter", ["\u6f22", '"', "x"], ids=["cjk", "escaped", "plain"])
def test_no_page_outgrows_its_limit_whatever_mail_and_servers_say(
    embedded: System, address: str, letter: str
) -> None:
    long = letter * 60_000
    fields = {"MIME_Version": "1.0", "Content_Type": "text/plain; charset=utf-8"}
    fields |= {f"X_{number}": long[:9_000] for number in range(40)}
    account = filled(embedded, address, message("one", f"{long}\r\n", **fields), message("two"))
    (first, second) = embedded.messages(account)
    with database.transaction():
        EmailRawMessage.update(subject=long, preview=long, text_body=long).execute()
        failed = {"status": MessageStatus.FAILED, "error": long[:1_000]}
        EmailRawMessage.update(failed).execute()
        found = EmailAccount.get()
        found.last_error, found.last_error_kind = long, "x"
        found.save()
        for number in range(200):
            EmailFolder.insert(
                account=found, wire_name=f"{number}", name=f"{number}{long[:900]}", last_error=long
            ).execute()
    hook = embedded.post("/admin/webhooks", 201, url="https://192.0.2.1/hook")["id"]
    with database.transaction():
        WebhookEndpoint.update(last_error=long, description=long).execute()
    for number in (first["id"], second["id"]):
        reason = {"reason": letter * 1_000}
        embedded.api.simulate_put(f"/admin/messages/{number}/hold", json=reason)
    browser = Browser(embedded)
    paths = [*PAGES, *ADMIN_PAGES, *pages_of(embedded, account)[:4], f"/webhooks/{hook}"]
    paths += [f"/accounts/{account}/{part}" for part in ("edit", "delete")]
    paths += [
        f"/messages/{one['id']}?view={view}"
        for one in (first, second)
        for view in ("text", "headers", "source")
    ]
    paths += [f"/messages?account={account}&folder=INBOX", "/search?q=one"]
    for path in paths:
        answer = browser.client.simulate_get(
            *path.split("?")[:1], query_string=path.partition("?")[2]
        )
        assert answer.status_code == 200, path
        assert len(answer.content) < 100_000, path
    # And what fits is shown still
    assert re.search(r"and \S+ more: <code>mailpoll stats", browser.get(f"/accounts/{account}"))
    assert hook in browser.get("/webhooks")
    assert "INBOX</a>" in browser.get(f"/accounts/{account}")
    whole = f"/messages/{first['id']}"
    page = get(browser, whole, view="text")
    assert "That is the beginning" in page
    assert f'href="{whole}/raw"' in page
    for number in (first["id"], second["id"]):
        embedded.api.simulate_delete(f"/admin/messages/{number}/hold")
    with database.transaction():
        EmailRawMessage.update(status=MessageStatus.PROCESSED, error=None).execute()
        EmailFolder.delete().where(EmailFolder.wire_name != "INBOX").execute()
        WebhookEndpoint.delete().execute()


def test_a_file_with_as_much_wrong_as_can_be_is_reported_on_one_page(embedded: System) -> None:
    wrong = "\n".join(f"{'x' * 60},{'y' * 40},nowhere,soon" for _ in range(200))
    page = Browser(embedded).post(
        "/accounts/import", 200, text=f"address,password,host,port\n{wrong}"
    )
    assert len(page.content) < 100_000
    assert "split the file" in page.text


def test_files_are_kept_for_long_and_open_to_all(embedded: System) -> None:
    client = falcon.testing.TestClient(embedded.api.app)
    form = client.simulate_get("/login", headers=HTML).text
    files = re.findall(r'(?:src|href)="(/assets/[^"]+)"', form)
    assert len(set(files)) == 3
    for path in files:
        answer = client.simulate_get(path)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert "json" not in answer.headers["content-type"]
    for path in ("/assets/", "/assets/console.css", "/assets/../render.py", "/assets/%2e%2e/x"):
        assert client.simulate_get(path).status_code in (401, 404), path


# --- what pages say


def test_no_page_holds_a_secret(system: System, address: str) -> None:
    canary = "canary-of-a-password"
    account = filled(system, address)
    bad = system.add_account(f"b{address}", password=canary, test=False)
    system.work_until(lambda: system.get(f"/admin/email-accounts/{bad}")["last_error"])
    hook = system.post("/admin/webhooks", 201, url="https://example.org/hook?key=canary-of-a-hook")
    key = new_key(system, "admin")
    browser = Browser(system, key["token"])
    shown = [browser.get(path) for path in (*PAGES, *ADMIN_PAGES, *pages_of(system, account))]
    shown += [browser.get(f"/accounts/{bad}"), browser.get(f"/accounts/{bad}/edit")]
    shown += [browser.get(f"/webhooks/{hook['id']}")]
    csv = f"address,password\nc{address},{canary}\n{address},{canary}\n"
    shown.append(browser.post("/accounts/import", 200, text=csv).text)
    place = {"host": "localhost", "port": str(system.dovecot.imaps_port)}
    typed = {"address": f"d{address}", "password": canary, **place}
    for step in ("test", "add"):
        shown.append(browser.post("/accounts/new", 422, do=step, **typed).text)
    text = "\n".join(shown)
    for secret in (canary, "canary-of-a-hook", TOKEN, KEY, key["token"], hook["secret"]):
        assert secret not in text


def test_a_new_keys_token_is_shown_once(system: System) -> None:
    browser = Browser(system)
    page = browser.post("/keys", 200, name="crm", scope="read").text
    (token,) = re.findall(r"mpk_[\w-]+", page)
    assert Browser(system, token).get("/")
    assert token not in browser.get("/keys")
    (key,) = system.get("/admin/api-keys")["items"]
    browser.post(f"/keys/{key['id']}/revoke")
    assert "revoked" in browser.get("/keys")
    again = browser.post("/keys", 422, name="crm", scope="read").text
    assert "aria-invalid" in again


def test_hostile_names_and_subjects_stay_text(system: System, address: str) -> None:
    part = HOSTILE.replace('"', "")
    attached = (
        f"--b\r\nContent-Type: text/plain\r\n\r\n{HOSTILE}\r\n--b\r\n"
        f"Content-Disposition: attachment; filename*=utf-8''{'%3Cscript%3Ealert(1)'}\r\n\r\n"
        "x\r\n--b--\r\n"
    )
    mixed = {"MIME_Version": "1.0", "Content_Type": 'multipart/mixed; boundary="b"'}
    account = filled(system, address, message(HOSTILE, attached, X_Header=part, **mixed))
    change_accounts(last_error=HOSTILE, last_error_kind="x", watch_error=HOSTILE)
    change_messages(status=MessageStatus.FAILED, error=HOSTILE)
    browser = Browser(system)
    (mail_id,) = [one["id"] for one in system.messages(account)]
    texts = [browser.get(path) for path in (*PAGES, *pages_of(system, account))]
    texts += [
        get(browser, f"/messages/{mail_id}", view=view) for view in ("text", "headers", "source")
    ]
    texts += [get(browser, "/accounts", address=HOSTILE), get(browser, "/audit", who=HOSTILE)]
    texts += [get(browser, "/", done=HOSTILE, n=HOSTILE)]
    for text in texts:
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "49" not in re.findall(r"&gt;(\d+)", text)
    assert "&lt;script&gt;" in "".join(texts)
    change_messages(status=MessageStatus.PROCESSED, error=None)


# --- mail


ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)><script>alert(2)</script></svg>",
    "<a href='javascript:alert(1)'>x</a>",
    "<a href='data:text/html,<script>alert(1)</script>'>x</a>",
    "<iframe src='https://evil.example'></iframe>",
    "<form action='https://evil.example'><input name=password><button>ok</button></form>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<base href='https://evil.example/'>",
    "<link rel=stylesheet href='https://evil.example/x.css'>",
    "<style>@import 'https://evil.example/x.css'; body{background:url(https://evil.example)}</style>",
    "<object data='https://evil.example'></object><embed src='https://evil.example'>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<img src='data:image/svg+xml,<svg onload=alert(1)>'>",
    "<video src='https://evil.example' onplay=alert(1)></video>",
    "</body></html><script>alert(1)</script>",
]


@pytest.mark.parametrize("html", ATTACKS, ids=range(len(ATTACKS)))
def test_what_runs_or_loads_is_cut_out_of_mail(html: str) -> None:
    cleaned = mail.clean(f"<p>before</p>{html}<p>after</p>", {}, remote=False).html.lower()
    assert "<p>before</p>" in cleaned
    for word in ("<script", "onerror", "onload", "javascript:", "<iframe", "<form", "<meta"):
        assert word not in cleaned
    for word in ("<base", "<link", "<object", "<embed", "<svg", "data:", "<style", "evil.example"):
        assert word not in cleaned


def test_html_of_mail_is_locked_up(system: System, address: str) -> None:
    html = "<p style='color:red'>words</p><img src='https://evil.example/a'>" + "".join(ATTACKS)
    kind = {"MIME_Version": "1.0", "Content_Type": "text/html"}
    account = filled(system, address, message("hello", html, **kind))
    browser = Browser(system)
    (one,) = system.messages(account)
    page = browser.get(f"/messages/{one['id']}")
    assert re.search(r"<iframe[^>]* sandbox [^>]*>", page)
    assert "One picture from elsewhere is not loaded" in page
    answer = browser.client.simulate_get(f"/messages/{one['id']}/html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert "img-src data:;" in policy
    assert "allow-" not in policy
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "evil.example" not in answer.text
    assert "words" in answer.text
    asked = browser.client.simulate_get(f"/messages/{one['id']}/html", params={"remote": "yes"})
    assert "https://evil.example/a" in asked.text
    assert "script" not in asked.headers["content-security-policy"]
    assert "default-src 'none'" in asked.headers["content-security-policy"]


def test_a_messages_own_pictures_are_shown(system: System, address: str) -> None:
    body = (
        '--b\r\nContent-Type: text/html\r\n\r\n<p>logo <img src="cid:logo@x"></p>\r\n'
        "--b\r\nContent-Type: image/gif\r\nContent-ID: <logo@x>\r\n"
        "Content-Transfer-Encoding: base64\r\n\r\nR0lGODlhAQABAAAAACw=\r\n--b--\r\n"
    )
    kind = {"MIME_Version": "1.0", "Content_Type": 'multipart/related; boundary="b"'}
    account = filled(system, address, message("hello", body, **kind))
    (one,) = system.messages(account)
    browser = Browser(system)
    assert "data:image/gif;base64,R0lGODlhAQABAAAAACw=" in browser.get(
        f"/messages/{one['id']}/html"
    )
    got = browser.client.simulate_get(f"/messages/{one['id']}/attachments/0")
    assert got.headers["content-disposition"].startswith("attachment")
    assert got.headers["content-security-policy"] == "sandbox; default-src 'none'"
    raw = browser.client.simulate_get(f"/messages/{one['id']}/raw")
    assert raw.content == system.api.simulate_get(f"/admin/messages/{one['id']}/raw").content
    assert "R0lGODlhAQABAAAAACw=" in get(browser, f"/messages/{one['id']}", view="source")


# --- what forms do


def test_an_account_is_tested_added_changed_and_deleted(system: System, address: str) -> None:
    system.dovecot.deliver(address, message("hello"))
    browser = Browser(system)
    place = {"host": "localhost", "port": str(system.dovecot.imaps_port), "security": "tls"}
    wrong = browser.post("/accounts/new", 422, do="test", address=address, password="no", **place)
    assert 'role="alert"' in wrong.text
    right = {"address": address, "password": PASSWORD, **place}
    assert "The login works" in browser.post("/accounts/new", 200, do="test", **right).text
    assert system.get("/admin/email-accounts")["items"] == []
    more = {"sync_flags": "yes", "retention_days": "30", "retention_expunged_days": "0"}
    added = browser.post("/accounts/new", do="add", **right, **more)
    (account,) = system.get("/admin/email-accounts")["items"]
    assert added.headers["location"] == f"/accounts/{account['id']}?done=added"
    kept = (account["sync_flags"], account["retention_days"], account["retention_expunged_days"])
    assert kept == (True, 30, 0)
    page = f"/accounts/{account['id']}"
    browser.post(f"{page}/do/pause")
    assert "Resume" in browser.get(page)
    browser.post(f"{page}/do/resume")
    changed = {**place, "username": address, "poll_interval": "300", "folders": "", "test": "yes"}
    browser.post(f"{page}/edit", **changed)
    assert system.get(f"/admin/email-accounts/{account['id']}")["poll_interval"] == 300
    refused = browser.post(f"{page}/edit", 422, **{**changed, "poll_interval": "soon"})
    assert "aria-invalid" in refused.text
    asked = browser.post("/accounts/bulk", 200, action="delete", id=account["id"])
    assert address in asked.text
    assert system.get(f"/admin/email-accounts/{account['id']}")["state"] == "active"
    browser.post("/accounts/bulk", action="delete", sure="yes", id=account["id"])
    assert "running" in browser.get("/deletions")
    system.work_until(
        lambda: system.get("/admin/delete-jobs")["items"][0]["state"] == "done",
    )
    (job,) = system.get("/admin/delete-jobs")["items"]
    assert "A last look found nothing" in browser.get(f"/deletions/{job['id']}")


def test_how_long_mail_is_kept_is_changed_and_left_to_the_installation_again(
    system: System, address: str
) -> None:
    account = system.add_account(address, test=False)
    path = f"/admin/email-accounts/{account}"
    browser = Browser(system)
    before = system.get(path)
    names = ("host", "port", "security", "username", "poll_interval")
    form = {name: before[name] for name in names} | {"sync_flags": "yes"}
    kept = {"retention_days": "365", "retention_expunged_days": "0"}
    browser.post(f"/accounts/{account}/edit", **form, **kept)
    changed = system.get(path)
    assert (changed["retention_days"], changed["retention_expunged_days"]) == (365, 0)
    assert changed["sync_flags"] is True
    page = browser.get(f"/accounts/{account}")
    assert "365 days after its arrival" in page
    assert "for ever" in page and "as for all accounts" not in page
    refused = browser.post(f"/accounts/{account}/edit", 422, **form, retention_days="soon")
    assert "aria-invalid" in refused.text
    # What was emptied does not come back with a refusal of something else
    refused = browser.post(f"/accounts/{account}/edit", 422, **form | {"port": "soon"})
    assert 'value="365"' not in refused.text
    browser.post(f"/accounts/{account}/edit", **form | {"poll_interval_max": "900"})
    assert system.get(path)["poll_interval_max"] == 900
    browser.post(f"/accounts/{account}/edit", **form)
    assert system.get(path)["poll_interval_max"] is None
    assert "as for all accounts" in browser.get(f"/accounts/{account}")
    again = system.get(path)
    assert (again["retention_days"], again["retention_expunged_days"]) == (None, None)


def test_what_is_held_is_not_deleted_until_it_is_lifted(system: System, address: str) -> None:
    account = filled(system, address)
    (one,) = system.messages(account)
    browser = Browser(system)
    pages = (f"/accounts/{account}", f"/messages/{one['id']}")
    for page in pages:
        browser.post(f"{page}/keep/hold", 422, reason="")
        browser.post(f"{page}/keep/burn", 404)
        browser.post(f"{page}/keep/lift", 404)
        answer = browser.post(f"{page}/keep/hold", reason="the case <b>of</b> May")
        assert answer.headers["location"] == f"{page}?done=held"
        assert "the case &lt;b&gt;of&lt;/b&gt; May" in browser.get(page)
    assert "account</a> is held" in browser.get(pages[1])
    held = browser.get("/holds")
    assert all(f'href="{page}"' in held for page in pages)
    assert "a legal hold is on it" in browser.get(f"/accounts/{account}/delete")
    spared = browser.post("/accounts/bulk", action="delete", sure="yes", id=account)
    assert spared.headers["location"] == "/deletions?done=spared&n=0"
    assert "lift it first" in browser.get(spared.headers["location"])
    assert system.get(f"/admin/email-accounts/{account}")["state"] == "active"
    for page in pages:
        browser.post(f"{page}/keep/lift")
    assert "Nothing is held" in browser.get("/holds")


def test_attachments_are_found_by_name_and_type(system: System, address: str) -> None:
    body = (
        "--b\r\nContent-Type: text/plain\r\n\r\nsee there\r\n--b\r\nContent-Type: image/gif\r\n"
        'Content-Disposition: attachment; filename="pixel.gif"\r\n'
        "Content-Transfer-Encoding: base64\r\n\r\nR0lGODlhAQABAAAAACw=\r\n--b--\r\n"
    )
    kind = {"MIME_Version": "1.0", "Content_Type": 'multipart/mixed; boundary="b"'}
    account = filled(system, address, message("hello", body, **kind), message("without"))
    (found,) = system.get(f"/admin/email-accounts/{account}/attachments")["items"]
    browser = Browser(system)
    path = f"/accounts/{account}/attachments"
    download = f"/messages/{found['message_id']}/attachments/{found['n']}"
    assert download in browser.get(path)
    assert download in get(browser, path, name=found["name"][1:-1].upper(), type="image/")
    assert "No attachment is like that" in get(browser, path, type="application/pdf")
    assert "No attachment is like that" in get(browser, path, name="elsewhere")


def test_flags_are_shown_and_asked_for_where_they_are_followed(
    system: System, address: str
) -> None:
    account = filled(system, address)
    browser = Browser(system)
    (one,) = system.messages(account)
    assert "Unread" not in get(browser, "/messages", account=account)
    system.api.simulate_patch(f"/admin/email-accounts/{account}", json={"sync_flags": True})
    with client(system, address) as session:
        session.add_flags(session.search(), [b"\\Flagged", b"urgent"])
    system.poll_and_process(account)
    for path in (f"/messages/{one['id']}", f"/messages?account={account}", "/messages"):
        assert "unread, flagged, urgent" in browser.get(path)
    for mark, there in (("unread", True), ("flagged", True), ("answered", False)):
        listed = get(browser, "/messages", account=account, mark=mark)
        assert (f"/messages/{one['id']}" in listed) is there, mark


def test_many_accounts_are_paused_at_once(system: System, address: str) -> None:
    ids = [system.add_account(f"{number}{address}", test=False) for number in range(3)]
    browser = Browser(system)
    answer = browser.post("/accounts/bulk", action="pause", id=[*ids[:2], ids[0], ID])
    assert answer.headers["location"] == "/accounts?done=paused&n=2"
    states = [one["state"] for one in system.get("/admin/email-accounts")["items"]]
    assert states == ["paused", "paused", "active"]
    assert [row["who"] for row in system.get("/admin/audit", action="account.pause")["items"]] == [
        "api token"
    ] * 2


def test_all_accounts_of_a_filter_are_paused_and_deleted_after_their_number_is_shown(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "LISTED", 2)
    monkeypatch.setattr(accounts, "PAGES", 1)
    monkeypatch.setattr(accounts, "PAGE", 2)
    browser = Browser(system)
    ids = [system.add_account(f"{number}{address}", test=False) for number in range(3)]
    other = system.add_account("other@example.org", test=False)
    assert "on every page" in get(browser, "/accounts", address=address)
    asked = browser.post("/accounts/bulk", 200, all="yes", action="pause", address=address)
    assert "Pause 3 accounts?" in asked.text

    def go_on(page: str) -> falcon.testing.Result:
        fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page))
        return browser.post("/accounts/bulk", 200, **fields)

    # Nobody is asked about more than was said
    ids.append(system.add_account(f"late{address}", test=False))
    again = go_on(asked.text)
    assert "Pause 4 accounts?" in again.text
    half = go_on(again.text)
    assert "2 of 4 are done" in half.text
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', half.text))
    done = browser.post("/accounts/bulk", **fields)
    assert done.headers["location"] == "/accounts?done=paused&n=4"
    assert system.get("/admin/stats")["accounts"]["paused"] == 4
    # What is deleted is no longer in the list, and the others are found still
    page = browser.post("/accounts/bulk", 200, all="yes", action="delete", state="paused").text
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', go_on(page).text))
    done = browser.post("/accounts/bulk", **fields)
    assert done.headers["location"] == "/deletions?done=deleting&n=4"
    assert [one["id"] for one in system.get("/admin/email-accounts")["items"]] == [other]


def test_accounts_without_a_server_do_not_keep_the_others_from_being_resumed(
    system: System, address: str
) -> None:
    browser = Browser(system)
    system.post("/admin/email-accounts", 201, address=f"archive-{address}", archive=True)
    ids = [system.add_account(f"{number}{address}", test=False) for number in range(2)]
    browser.post("/accounts/bulk", action="pause", id=ids)
    page = browser.post("/accounts/bulk", 200, all="yes", action="resume", state="paused").text
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page))
    browser.post("/accounts/bulk", **fields)
    assert system.get("/admin/stats")["accounts"]["active"] == 2


def test_accounts_come_from_a_file_after_a_look_at_it(system: System, address: str) -> None:
    browser = Browser(system)
    system.add_account(address, test=False)
    lines = [
        "Address;Password;Host;Port;Folders",
        f'a{address};secret;localhost;{system.dovecot.imaps_port};"INBOX;Sent"',
        f"{address};secret;localhost;{system.dovecot.imaps_port};",
    ]
    csv = "\n".join(lines).encode()
    boundary = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
    looked = browser.client.simulate_post(
        "/accounts/import",
        body=boundary + csv + b"\r\n--x--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert looked.status_code == 200, looked.text
    assert "1 of 2 lines is fine" in re.sub(r"\s+", " ", looked.text)
    assert len(system.get("/admin/email-accounts")["items"]) == 1
    (sealed,) = re.findall(r'name="sealed" value="([^"]+)"', looked.text)
    done = browser.post("/accounts/import", 200, sealed=sealed).text
    assert "One account was added" in done
    _, new = system.get("/admin/email-accounts")["items"]
    assert (new["address"], new["folders"]) == (f"a{address}", ["INBOX", "Sent"])
    browser.post("/accounts/import", 400, sealed=sealed[:-4])


@pytest.mark.parametrize(
    "text",
    ["", "\0", "nothing", "address,colour\nx,y", "address\n", "address\n" + "a@b\n" * 201, "\n\n"],
    ids=range(7),
)
def test_what_is_no_file_of_accounts_is_refused(embedded: System, text: str) -> None:
    refused = Browser(embedded).post("/accounts/import", 422, text=text).text
    assert 'role="alert"' in refused


def test_failed_messages_are_tried_again_by_reason(system: System, address: str) -> None:
    account = filled(system, address, message("one"), message("two"))
    change_messages(status=MessageStatus.FAILED, error="it is broken")
    browser = Browser(system)
    assert "it is broken" in browser.get("/failed")
    assert "2 messages could not be processed" in browser.get("/")
    answer = browser.post("/failed", error="it is broken")
    assert answer.headers["location"] == "/failed?done=retried&n=2"
    system.work_until(lambda: system.get("/admin/stats")["by_status"]["processed"] == 2)
    change_messages(status=MessageStatus.FAILED, error="it is broken")
    (one, _) = system.messages(account)
    browser.post(f"/messages/{one['id']}/retry")
    browser.post(f"/messages/{one['id']}/retry", 409)
    change_messages(status=MessageStatus.PROCESSED, error=None)


def test_the_overview_says_what_needs_attention(system: System, address: str) -> None:
    browser = Browser(system)
    assert "Needs attention" in browser.get("/")
    system.add_account(address, test=False)
    change_accounts(state=AccountState.AUTH_FAILED)
    page = browser.get("/")
    assert "One account is not polled" in page
    assert "/accounts?state=auth_failed" in page


def test_every_alarm_leads_to_a_place_that_its_reader_may_open(system: System) -> None:
    assert set(overview.PLACES) == set(alarms.ALARMS)
    admin = Browser(system)
    reading = Browser(system, new_key(system, "read")["token"])
    for place in {place.partition("#")[0] for place, _ in overview.PLACES.values()}:
        admin.get(place)
        if place not in overview.ADMIN_PLACES:
            reading.get(place)


def test_all_that_needs_attention_is_told_at_once(system: System, address: str) -> None:
    account = filled(system, address)
    change_messages(status=MessageStatus.FAILED, error="because")
    make_dead(system, 1, 2)
    hook = system.post("/admin/webhooks", 201, url="https://192.0.2.1/hook")["id"]
    with database.transaction():
        WebhookEndpoint.update(state=EndpointState.DISABLED).where(
            WebhookEndpoint.uuid == hook
        ).execute()
        EmailAccount.update(
            next_poll_at=database.now() - timedelta(hours=1), lease_until=None
        ).where(EmailAccount.uuid == account).execute()
        EmailDamage.insert(
            account=1,
            message_id=1,
            storage_key="x",
            kind="blob_corrupt",
            reason="because",
            found_at=database.now(),
            next_attempt_at=database.now(),
        ).execute()
    page = Browser(system).get("/")
    for words in (
        "One message could not be processed.",
        "One task has failed for good.",
        "One account is polled over a minute late.",
        "One stored file is damaged.",
        "One webhook is switched off",
    ):
        assert page.count(words) == 1, words
    change_messages(status=MessageStatus.PROCESSED, error=None)
    with database.transaction():
        EmailDamage.delete().execute()


def test_a_webhook_is_added_and_removed(system: System) -> None:
    browser = Browser(system)
    shown = browser.post(
        "/webhooks/new", 200, url="https://192.0.2.1/hook", types=["message.new"], payload="ids"
    ).text
    assert "whsec_" in shown
    (hook,) = system.get("/admin/webhooks")["items"]
    assert hook["types"] == ["message.new"]
    page = f"/webhooks/{hook['id']}"
    browser.post(f"{page}/do/pause")
    assert "Switch on" in browser.get(page)
    browser.post(f"{page}/do/replay", since="2026-01-01")
    browser.post(f"{page}/do/replay", 422, since="soon")
    browser.post(f"{page}/do/nothing", 404)
    assert "aria-invalid" in browser.post("/webhooks/new", 422, url="ftp://example.org").text
    browser.post(f"{page}/do/delete")
    assert system.get("/admin/webhooks")["items"] == []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nowhere", 401),  # no page, so no session either
        ("/accounts/nowhere", 404),
        (f"/accounts/{ID}", 404),
        ("/messages/0", 404),
        ("/messages/999", 404),
        ("/messages/999/html", 404),
        (f"/accounts/{ID}/attachments", 404),
        (f"/deletions/{ID}", 404),
        (f"/webhooks/{ID}", 404),
    ],
)
def test_what_is_not_there_is_said_on_a_page(embedded: System, path: str, status: int) -> None:
    answer = Browser(embedded).client.simulate_get(path)
    assert answer.status_code == status
    if status == 404:
        assert answer.text.startswith("<!doctype html>")
        assert answer.headers["x-request-id"] in answer.text


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/accounts", {"cursor": "x"}),
        ("/accounts", {"state": "lost"}),
        ("/accounts", {"sort": "colour"}),
        ("/messages", {"status": "lost"}),
        ("/messages", {"cursor": "x"}),
        ("/audit", {"since": "yesterday"}),
    ],
)
def test_a_wrong_question_is_answered_with_a_page(
    embedded: System, path: str, params: dict[str, str]
) -> None:
    answer = Browser(embedded).client.simulate_get(path, params=params)
    assert answer.status_code == 422
    assert answer.text.startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("text/plain", b"action=poll", 415),
        (FORM, b"id=x&" * 1_001 + b"action=poll", 400),
        (FORM, b"x" * 200_001, 413),
        (FORM, b"action=poll&id=nobody", 400),
        (FORM, b"action=explode&id=x", 400),
        (FORM, b"\xff\xfe=%ff", 400),
        ("multipart/form-data", b"--x", 400),
        ("multipart/form-data; boundary=x", b"nothing", 400),
    ],
)
def test_what_is_no_form_is_refused(embedded: System, kind: str, body: bytes, status: int) -> None:
    browser = Browser(embedded)
    answer = browser.client.simulate_post(
        "/accounts/bulk", body=body, headers={"Content-Type": kind}
    )
    assert answer.status_code == status, answer.text


def test_the_address_of_an_answered_form_leads_to_its_page(system: System, address: str) -> None:
    """As from a browser's address line after a test, which is answered where it was sent to."""
    account = system.add_account(address, test=False)
    hook = system.post("/admin/webhooks", 201, url="https://192.0.2.1/hook")["id"]
    browser = Browser(system, new_key(system, "read")["token"])
    for page in (f"/accounts/{account}", f"/webhooks/{hook}"):
        answer = browser.client.simulate_get(f"{page}/do/test")
        assert (answer.status_code, answer.headers.get("location")) == (303, page)


def test_requests_have_one_name_in_page_and_audit_log(system: System, address: str) -> None:
    account = system.add_account(address)
    answer = Browser(system).post(f"/accounts/{account}/do/pause")
    (event,) = system.get("/admin/audit", action="account.pause")["items"]
    assert event["request_id"] == answer.headers["x-request-id"]
    assert event["client"] == "127.0.0.1"


def test_a_dead_task_runs_again(system: System) -> None:
    browser = Browser(system)
    browser.post("/tasks/retry", 404, task="nothing")
    browser.post("/tasks/retry", 400, task="a/b")
    dead = make_dead(system, 1, 2)
    page = browser.get("/tasks")
    assert dead["id"] in page
    assert "delete_account" in page
    browser.post("/tasks/retry", task=dead["id"])
    assert queue(system, "maintenance")["dead"] == 0
    assert queue(system, "maintenance")["waiting"] == 1
