"""``GET /admin/messages/{id}``, ``/raw``, ``/attachments/{n}`` and ``POST …/retry``."""

import hashlib
from email.message import EmailMessage
from email.policy import SMTP
from urllib.parse import quote

import pytest

from mailpoll import database, runtime
from mailpoll.web.paging import MAX_ID
from tests.integration.rows import change_messages
from tests.integration.system import System, message

NAMES = {
    "plain.txt": "text/plain",
    "page.html": "text/html",
    "image.svg": "image/svg+xml",
    "photo.png": "image/png",
    "code.js": "text/javascript",
    "document.xml": "application/xml",
}
HOSTILE = [
    'a"; filename="evil.exe',
    "a\\",
    "../../etc/passwd",
    "tab\there",
    "日本語.pdf",
    "\u202egpj.exe",
    "x" * 2_000 + ".txt",
]


def letter(names: dict[str, str]) -> bytes:
    mail = EmailMessage(policy=SMTP)
    mail["From"] = "Ann <ann@example.org>"
    mail["To"] = "Bob <bob@example.org>"
    mail["Subject"] = "attached"
    mail.set_content("text\n")
    mail.add_alternative("<script>alert(1)</script>", subtype="html")
    for name, kind in names.items():
        main, _, sub = kind.partition("/")
        mail.add_attachment(name.encode(), maintype=main, subtype=sub, filename=name)
    return mail.as_bytes()


def only_message(system: System, address: str, raw: bytes) -> int:
    system.dovecot.deliver(address, raw)
    account = system.add_account(address)
    system.poll_and_process(account)
    (item,) = system.messages(account)
    return int(item["id"])


def test_a_message_has_fields_bodies_attachments_and_places(system: System, address: str) -> None:
    found = system.get(f"/admin/messages/{only_message(system, address, letter(NAMES))}")
    assert found["subject"] == "attached"
    assert found["from"] == [{"name": "Ann", "address": "ann@example.org"}]
    assert found["text"].strip() == "text"
    assert "<script>" in found["html"]
    assert [(item["n"], item["name"]) for item in found["attachments"]] == list(enumerate(NAMES))
    assert [place["folder"] for place in found["locations"]] == ["INBOX"]
    assert ["Subject", "attached"] in found["headers"]


def test_a_message_of_html_alone_has_a_text_that_says_so(system: System, address: str) -> None:
    raw = b"From: a@example.org\r\nContent-Type: text/html\r\n\r\n<p>Hello,<p>please <b>pay</b>."
    found = system.get(f"/admin/messages/{only_message(system, address, raw)}")
    assert (found["text"], found["text_derived"]) == ("Hello,\n\nplease pay.", True)
    assert found["html"].startswith("<p>Hello,<p>please <b>pay</b>.")


def test_a_text_of_the_sender_is_not_replaced(embedded: System, address: str) -> None:
    found = embedded.get(f"/admin/messages/{only_message(embedded, address, letter({}))}")
    assert (found["text"].strip(), found["text_derived"]) == ("text", False)


def test_a_message_is_json_and_never_a_page(embedded: System, address: str) -> None:
    url = f"/admin/messages/{only_message(embedded, address, letter({}))}"
    answer = embedded.api.simulate_get(url, headers={"Accept": "text/html"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_raw_message_is_exact_and_only_a_download(system: System, address: str) -> None:
    raw = letter({})
    answer = system.api.simulate_get(f"/admin/messages/{only_message(system, address, raw)}/raw")
    assert answer.content == raw
    assert answer.headers["content-type"] == "message/rfc822"
    assert answer.headers["content-length"] == str(len(raw))
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert answer.headers["etag"] == f'"{hashlib.sha256(raw).hexdigest()}"'


def test_attachments_that_browsers_run_are_plain_bytes(system: System, address: str) -> None:
    number = only_message(system, address, letter(NAMES))
    kinds = {}
    for n, name in enumerate(NAMES):
        answer = system.api.simulate_get(f"/admin/messages/{number}/attachments/{n}")
        assert answer.content == name.encode()
        assert answer.headers["content-disposition"].startswith("attachment;")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
        kinds[name] = answer.headers["content-type"]
    harmless = {"plain.txt": "text/plain", "photo.png": "image/png"}
    assert kinds == {name: harmless.get(name, "application/octet-stream") for name in NAMES}


def test_a_hostile_name_stays_inside_one_header(embedded: System, address: str) -> None:
    number = only_message(embedded, address, letter(dict.fromkeys(HOSTILE, "application/x-a")))
    for n in range(len(HOSTILE)):
        answer = embedded.api.simulate_get(f"/admin/messages/{number}/attachments/{n}")
        header = answer.headers["content-disposition"]
        assert header.isascii()
        assert header.isprintable()
        assert header.count('"') in (0, 2)
        assert "\\" not in header
        assert "/" not in header
        assert "%E2%80%AE" not in header
        assert len(header) < 2_000


def test_encoded_line_ends_in_a_name_make_no_header(embedded: System, address: str) -> None:
    evil = quote("a\r\nX-Evil: 1\r\n\r\n<script>")
    raw = (
        'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n\r\ntext\r\n--b\r\n'
        f"Content-Disposition: attachment; filename*=utf-8''{evil}\r\n\r\nx\r\n--b--\r\n"
    )
    number = only_message(embedded, address, raw.encode())
    answer = embedded.api.simulate_get(f"/admin/messages/{number}/attachments/0")
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers
    assert answer.headers["content-disposition"].isprintable()


@pytest.mark.parametrize("path", ["1", "0", "-1", "x", str(MAX_ID), str(MAX_ID + 1), "1e3", "%00"])
@pytest.mark.parametrize("part", ["", "/raw", "/attachments/0"])
def test_a_message_that_is_not_there(embedded: System, path: str, part: str) -> None:
    answer = embedded.api.simulate_get(f"/admin/messages/{path}{part}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("n", ["1", "-1", "x", "99999999999999999999"])
def test_an_attachment_that_is_not_there(embedded: System, address: str, n: str) -> None:
    number = only_message(embedded, address, letter({"a.txt": "text/plain"}))
    url = f"/admin/messages/{number}/attachments/{n}"
    assert embedded.api.simulate_get(url).status_code == 404


@pytest.mark.leaves_damage
def test_a_file_that_is_missing_from_the_store_is_no_crash(system: System, address: str) -> None:
    number = only_message(system, address, message("lost"))
    for item in system.get("/admin/email-accounts")["items"]:
        runtime.storage().delete_account(item["id"])
    answer = system.api.simulate_get(f"/admin/messages/{number}/raw")
    assert answer.status_code == 503
    assert "stored file" in answer.json["detail"]
    # And nobody is said to have downloaded it
    assert "message.download" not in {one["action"] for one in system.get("/admin/audit")["items"]}


def test_a_failed_message_is_processed_again(system: System, address: str) -> None:
    number = only_message(system, address, message("again"))
    change_messages(status="failed", error="because", attempts=3, subject=None)
    shown = system.post(f"/admin/messages/{number}/retry", 202)
    assert (shown["status"], shown["attempts"], shown["error"]) == ("stored", 0, None)
    url = f"/admin/messages/{number}"
    system.work_until(lambda: system.get(url)["status"] == "processed")
    assert system.get(url)["subject"] == "again"


def test_only_failed_messages_are_processed_again(system: System, address: str) -> None:
    number = only_message(system, address, message("fine"))
    problem = system.post(f"/admin/messages/{number}/retry", 409)
    assert "not failed" in problem["detail"]


@pytest.mark.parametrize("number", [1, MAX_ID])
def test_nothing_can_be_retried_that_is_not_there(embedded: System, number: int) -> None:
    embedded.post(f"/admin/messages/{number}/retry", 404)


def test_the_end_of_the_year_9999_is_read_from_a_database_of_another_time_zone(
    system: System, address: str
) -> None:
    if not database.is_sqlite():
        with database.connected():
            ((name,),) = database.proxy.execute_sql("SELECT current_database()").fetchall()
            database.proxy.execute_sql(f"ALTER DATABASE \"{name}\" SET timezone = 'Asia/Tokyo'")
        database.proxy.close_all()  # a session keeps the zone that it began with
    system.dovecot.deliver(
        address, b"Date: Fri, 31 Dec 9999 23:30:00 +0000\r\nSubject: late\r\n\r\nx\r\n"
    )
    account = system.add_account(address)
    system.poll_and_process(account)
    (item,) = system.messages(account)
    assert item["date"] == "9999-12-31T23:30:00Z"
