"""What the detail of a message shows beside its fields, and lists of attachments."""

import hashlib
import json
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from mailpoll import runtime, signatures
from mailpoll.blobs import StoreUnavailable
from tests.integration.archived import ACCOUNTS, add_archive, environment, process, upload
from tests.integration.conftest import _embedded, run_system
from tests.integration.system import System, message
from tests.integration.test_cli import run
from tests.servers.dns_server import DnsServer
from tests.servers.dovecot import Dovecot
from tests.unit.parsing.test_extras import INVITATION, winmail


def shown(system: System, address: str, raw: bytes) -> Any:
    """The detail of a message that was imported and processed."""
    account = add_archive(system, address)
    upload(system, account, raw, name="a.eml")
    process(system, account)
    (row,) = system.messages(account)
    return system.get(f"/admin/messages/{row['id']}")


def letter(text: str = "Hello\n", **headers: str) -> EmailMessage:
    mail = EmailMessage(policy=SMTP)
    mail["From"], mail["To"], mail["Subject"] = "ann@example.org", "bob@example.org", "x"
    for name, value in headers.items():
        mail[name.replace("_", "-")] = value
    mail.set_content(text)
    return mail


def test_the_senders_own_words_are_told_from_what_is_quoted(system: System, address: str) -> None:
    text = "Thank you!\nAnn\n\nOn 23 Nov 2026 at 10:00 Bob <bob@example.org> wrote:\n> old\n"
    found = shown(system, address, letter(text).as_bytes())
    assert found["reply_text"] == "Thank you!\nAnn"
    assert found["preview"] == "Thank you! Ann"
    assert "> old" in found["text"]
    account = found["account_id"]
    assert system.messages(account)[0]["preview"] == "Thank you! Ann"


def test_inline_pictures_are_resolved(system: System, address: str) -> None:
    mail = letter()
    mail.add_alternative('<img src="cid:logo@x"><img src="cid:photo@x">', subtype="html")
    html = mail.get_payload()[1]
    html.add_related(b"1", "image", "png", cid="<logo@x>")
    html.add_related(b"2", "image", "jpeg", cid="<photo@x>")
    found = shown(system, address, mail.as_bytes())
    assert found["inline"] == {"logo@x": 0, "photo@x": 1}
    answer = system.api.simulate_get(f"/admin/messages/{found['id']}/attachments/1")
    assert answer.content == b"2"


def test_an_invitation_is_shown_as_what_it_holds(system: System, address: str) -> None:
    mail = letter()
    mail.add_attachment(INVITATION, "text", "calendar", filename="invite.ics")
    found = shown(system, address, mail.as_bytes())
    (calendar,) = found["calendars"]
    assert (calendar["n"], calendar["method"]) == (0, "REQUEST")
    assert calendar["events"][0]["summary"] == "Lunch, or\n dinner"
    assert calendar["events"][0]["start"] == {
        "value": "2026-11-23T12:00:00",
        "time_zone": "Europe/Berlin",
    }
    assert found["tnef"] == []


def test_the_files_of_a_winmail_can_be_downloaded(system: System, address: str) -> None:
    mail = letter()
    mail.add_attachment(winmail(), "application", "ms-tnef", filename="winmail.dat")
    found = shown(system, address, mail.as_bytes())
    (tnef,) = found["tnef"]
    first, second = tnef["files"]
    assert (tnef["n"], tnef["subject"], tnef["text"]) == (0, "A subject", "The text")
    assert (first["k"], first["name"]) == (0, "Übersicht 2026.pdf")
    assert first["sha256"] == hashlib.sha256(b"%PDF content").hexdigest()
    assert second["safe_name"] == "_.._evil"
    url = f"/admin/messages/{found['id']}/attachments/0/files"
    answer = system.api.simulate_get(f"{url}/1")
    assert answer.content == b"more"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="_.._evil"'
    assert system.api.simulate_get(f"{url}/2").status_code == 404
    assert system.api.simulate_get(url.replace("/0/", "/1/") + "/0").status_code == 404


def test_what_is_no_winmail_and_no_calendar_is_only_an_attachment(
    embedded: System, address: str
) -> None:
    mail = letter()
    mail.add_attachment(b"nonsense", "application", "ms-tnef", filename="winmail.dat")
    mail.add_attachment(b"\xff\0nonsense", "text", "calendar", filename="a.ics")
    found = shown(embedded, address, mail.as_bytes())
    assert found["tnef"] == []
    assert found["calendars"] == [{"n": 1, "method": "", "events": [], "complete": True}]


def test_a_message_is_shown_while_its_attachments_cannot_be_read(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail = letter()
    mail.add_attachment(INVITATION, "text", "calendar", filename="invite.ics")
    found = shown(system, address, mail.as_bytes())

    def refuse(*_: Any) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(runtime.storage(), "open", refuse)
    again = system.get(f"/admin/messages/{found['id']}")
    assert (again["calendars"], again["not_read"]) == ([], [0])


def test_what_the_receiving_server_found_is_shown(system: System, address: str) -> None:
    raw = (
        b"Authentication-Results: mx.example.org; dkim=pass header.d=example.net\r\n"
        b"Authentication-Results: forged.example.net; dmarc=pass\r\n"
    ) + message("x")
    found = shown(system, address, raw)["authentication"]
    assert found["server"] == "mx.example.org"
    assert [(one["method"], one["result"]) for one in found["results"]] == [("dkim", "pass")]


def test_without_such_a_field_nothing_is_claimed(embedded: System, address: str) -> None:
    found = shown(embedded, address, message("x"))
    assert (found["authentication"], found["dkim"]) == (None, None)


# --- signatures


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65_537, 2_048)


def signed(key: rsa.RSAPrivateKey, raw: bytes) -> bytes:
    private = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return bytes(dkim.sign(raw, b"mail", b"example.org", private)) + raw


def record(key: rsa.RSAPrivateKey) -> str:
    import base64

    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    text = "v=DKIM1; k=rsa; p=" + base64.b64encode(public).decode()
    return " ".join(f'"{text[start : start + 200]}"' for start in range(0, len(text), 200))


def test_a_signature_is_checked_when_asked_for(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    dovecot: Dovecot,
    address: str,
    key: rsa.RSAPrivateKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signatures, "TIMEOUT", 0.5)
    with DnsServer({("mail._domainkey.example.org.", "TXT"): [record(key)]}) as dns:
        place = {"MAILPOLL_DNS_SERVER": f"127.0.0.1:{dns.port}"}
        for system in run_system(_embedded(request, tmp_path), tmp_path, dovecot, **place):
            raw = signed(key, message("signed"))
            good = shown(system, address, raw)
            assert (good["dkim"], dns.questions) == (None, [])
            url = f"/admin/messages/{good['id']}"
            expected = {"domain": "example.org", "selector": "mail"}
            assert system.get(url, verify="dkim")["dkim"] == [
                {**expected, "result": "pass", "reason": ""}
            ]
            # It stays known, and the more so when the domain does not answer any more
            known = dict(dns.records)
            dns.records.clear()
            assert system.get(url)["dkim"] == [{**expected, "result": "pass", "reason": ""}]
            dns.silent = True
            again = system.get(url, verify="dkim")
            assert again["dkim"] == [{**expected, "result": "pass", "reason": ""}]
            assert again["dkim_checked_at"] is not None
            dns.silent = False
            dns.records.update(known)
            changed = shown(system, f"x{address}", raw.replace(b"Hello", b"Hallo"))
            (found,) = system.get(f"/admin/messages/{changed['id']}", verify="dkim")["dkim"]
            assert found["result"] != "pass"
            other = raw.replace(b"s=mail;", b"s=none;")
            unknown = shown(system, f"y{address}", other)
            (found,) = system.get(f"/admin/messages/{unknown['id']}", verify="dkim")["dkim"]
            assert found["result"] in ("fail", "permerror")
            plain = shown(system, f"z{address}", message("plain"))
            assert system.get(f"/admin/messages/{plain['id']}", verify="dkim")["dkim"] == []
            answer = system.api.simulate_get(url, params={"verify": "spf"})
            assert answer.status_code == 422


def test_a_hostile_signature_is_an_error_with_words(embedded: System, address: str) -> None:
    for number, field in enumerate(
        (
            b"DKIM-Signature: nonsense\r\n",
            b"DKIM-Signature: v=1; a=rsa-sha256; d=; s=; h=; bh=; b=\r\n",
            b"DKIM-Signature: v=1; a=x; c=y/z; d=a; s=b; h=from; bh=x; b=x; l=-1\r\n" * 20,
            b"DKIM-Signature: " + b" \t" * 100_000 + b"x\r\n",
        )
    ):
        found = shown(embedded, f"{number}{address}", field + message("x"))
        signatures = embedded.get(f"/admin/messages/{found['id']}", verify="dkim")["dkim"]
        assert 1 <= len(signatures) <= 5
        assert {one["result"] for one in signatures} <= {"permerror", "fail"}


# --- attachments


def filled(system: System, address: str) -> str:
    account = add_archive(system, address)
    for number, (name, kind, size) in enumerate(
        [
            ("Invoice 1.pdf", "application/pdf", 100),
            ("invoice_2.PDF", "application/pdf", 2_000),
            ("photo.png", "image/png", 30_000),
            ("100%.txt", "text/csv", 5),
        ]
    ):
        mail = letter(f"{number}\n")
        main, _, sub = kind.partition("/")
        mail.add_attachment(b"x" * size, main, sub, filename=name)
        upload(system, account, mail.as_bytes(), name="a.eml")
        process(system, account)
    return account


def test_attachments_are_listed_and_found(system: System, address: str) -> None:
    account = filled(system, address)

    def names(**query: Any) -> list[str]:
        found = system.get(f"{ACCOUNTS}/{account}/attachments", **query)["items"]
        return [one["name"] for one in found]

    assert names() == ["100%.txt", "photo.png", "invoice_2.PDF", "Invoice 1.pdf"]
    assert names(name="invoice") == ["invoice_2.PDF", "Invoice 1.pdf"]
    assert names(name="%") == ["100%.txt"]
    assert names(name="_") == ["invoice_2.PDF"]
    assert names(type="image/") == ["photo.png"]
    assert names(type="Application/PDF", min_size=1_000) == ["invoice_2.PDF"]
    assert names(min_size=100_000) == []
    first = system.get(f"{ACCOUNTS}/{account}/attachments", limit=3)
    second = system.get(f"{ACCOUNTS}/{account}/attachments", limit=3, cursor=first["next"])
    assert [one["name"] for one in (*first["items"], *second["items"])] == names()
    assert second["next"] is None
    item = first["items"][0]
    assert (item["n"], item["subject"], item["from"][0]["address"]) == (0, "x", "ann@example.org")
    url = f"/admin/messages/{item['message_id']}/attachments/{item['n']}"
    assert system.api.simulate_get(url).content == b"xxxxx"
    other = add_archive(system, f"x{address}")
    assert system.get(f"{ACCOUNTS}/{other}/attachments")["items"] == []


@pytest.mark.parametrize("query", ["min_size=-1", "limit=0", "limit=1000", "cursor=x", "a=b"])
def test_a_wrong_query_is_refused(embedded: System, address: str, query: str) -> None:
    account = add_archive(embedded, address)
    answer = embedded.api.simulate_get(f"{ACCOUNTS}/{account}/attachments?{query}")
    assert answer.status_code == 422


def test_the_command_lists_attachments(embedded: System, address: str, tmp_path: Path) -> None:
    filled(embedded, address)
    result = run(
        *("attachments", address, "--type", "application/", "--json"),
        variables=environment(),
        cwd=tmp_path,
    )
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["name"], row["size"]) for row in rows] == [
        ("invoice_2.PDF", 2_000),
        ("Invoice 1.pdf", 100),
    ]
    result = run("attachments", address, variables=environment(), cwd=tmp_path)
    assert b"photo.png" in result.stdout
