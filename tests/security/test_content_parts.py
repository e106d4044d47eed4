"""What mail brings along is kept as it is: never unpacked, run, followed or asked for."""

import gzip
import io
import os
import subprocess
import sys
import textwrap
import zipfile
from email.message import EmailMessage
from urllib.parse import urlsplit

import pytest

from tests.integration.rows import blobs
from tests.integration.system import System, message


def zip_with(**members: bytes) -> bytes:
    """A zip whose member ``link`` is a symbolic link."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if name == "link":
                info.external_attr = 0o120777 << 16
            archive.writestr(info, content)
    return made.getvalue()


def nested_bomb(levels: int = 6) -> bytes:
    """Zips within a zip that would become 16 TB, as 42.zip does."""
    content = zip_with(zeros=bytes(10_000_000))
    for _ in range(levels):
        content = zip_with(**{f"file{n}": content for n in range(16)})
    return content


def letter(files: dict[str, bytes]) -> bytes:
    mail = EmailMessage()
    mail["From"], mail["Subject"] = "a@example.org", "files"
    mail.set_content("text")
    for name, content in files.items():
        mail.add_attachment(content, maintype="application", subtype="zip", filename=name)
    return mail.as_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def test_bombs_are_stored_as_they_are(system: System, address: str) -> None:
    """S23: size in, size out; nothing lies anywhere that was not sent."""
    files = {
        "42.zip": nested_bomb(),
        "bomb.gz": gzip.compress(bytes(10_000_000)),
        "link.zip": zip_with(link=b"/etc/passwd", other=b"x"),
    }
    system.dovecot.deliver(address, letter(files))
    account = system.add_account(address)
    system.poll_and_process(account)
    (shown,) = system.messages(account)
    attachments = system.get(f"/admin/messages/{shown['id']}")["attachments"]
    assert [(one["name"], one["size"]) for one in attachments] == [
        (name, len(content)) for name, content in files.items()
    ]
    for n, content in enumerate(files.values()):
        answer = system.api.simulate_get(f"/admin/messages/{shown['id']}/attachments/{n}")
        assert answer.content == content
    assert len(blobs(account)) == len(files) + 1


#: Everything that a browser, an XML reader or an eager program would go and fetch.
PLACES = (
    '<img src="{0}/i"><link rel=stylesheet href="{0}/c"><script src="{0}/s"></script>'
    '<iframe src="{0}/f"></iframe><base href="{0}/"><meta http-equiv=refresh content="0;url={0}/r">'
    '<object data="{0}/o"></object><video src="{0}/v"></video><style>@import url({0}/m)</style>'
    '<body background="{0}/b"><a ping="{0}/p" href=x>x</a><img srcset="{0}/t 2x">'
)
SVG = (
    '<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "{0}/x"><!ENTITY % y SYSTEM "{0}/y">'
    " %y;]>"
    '<?xml-stylesheet href="{0}/h"?><svg xmlns="http://www.w3.org/2000/svg" '
    'xmlns:xlink="http://www.w3.org/1999/xlink"><image xlink:href="{0}/g"/><text>&x;</text></svg>'
)
ICS = (
    'BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nATTACH:{0}/a\r\nORGANIZER;DIR="{0}/d":mailto:a@b.c\r\n'
    "BEGIN:VALARM\r\nACTION:AUDIO\r\nATTACH;FMTTYPE=audio/basic:{0}/w\r\nEND:VALARM\r\n"
    "END:VEVENT\r\nEND:VCALENDAR\r\n"
)
FIELDS = (
    "Disposition-Notification-To: {1}\r\nReturn-Receipt-To: {1}\r\nList-Unsubscribe: <{0}/l>\r\n"
    "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nContent-Base: {0}/\r\nFace: {0}/z\r\n"
    "X-Image-URL: {0}/u\r\nBIMI-Location: v=BIMI1; l={0}/bimi\r\nAutocrypt: addr={1}\r\n"
)


def hostile(place: str) -> bytes:
    html = PLACES.format(place) + "".join(f"<p>{n}" for n in range(100))
    external = (
        f'Content-Type: message/external-body; access-type=URL; URL="{place}/e"\r\n\r\n'
        "Content-Type: image/png\r\n\r\n"
    )
    parts = [
        f"Content-Type: text/html\r\nContent-Location: {place}/\r\n\r\n{html}",
        "Content-Type: image/svg+xml\r\nContent-Disposition: inline; filename=a.svg\r\n\r\n"
        + SVG.format(place),
        f"Content-Type: text/xml\r\n\r\n{SVG.format(place)}",
        f"Content-Type: text/calendar; method=REQUEST\r\n\r\n{ICS.format(place)}",
        f"Content-Type: application/xhtml+xml\r\n\r\n{SVG.format(place)}",
        external,
    ]
    body = "".join(f"--b\r\n{part}\r\n" for part in parts) + "--b--\r\n"
    head = (
        FIELDS.format(place, "spy@canary.invalid")
        + 'Content-Type: multipart/mixed; boundary="b"\r\n'
    )
    return (head + "\r\n" + body).encode()


def test_reading_mail_asks_nobody_anything() -> None:
    """S29: no look-up and no connection, whatever the mail refers to.

    A process of its own, in which every use of the network, of other programs and of files outside
    Python's own would be noted by the interpreter.
    """
    mails = [
        hostile("http://canary.invalid"),
        hostile("https://127.0.0.1:9"),
        hostile("file:///etc/passwd"),
    ]
    html_alone = b"Content-Type: text/html\r\n\r\n" + SVG.format("file:///etc/passwd").encode()
    program = textwrap.dedent("""
        import sys
        from mailpoll.parsing import parse
        parse(b"Subject: warm up\\r\\nContent-Type: text/html\\r\\n\\r\\n<p>x")
        seen = []
        watched = ("socket.", "urllib.", "subprocess.", "os.system", "os.exec", "os.posix_spawn",
                   "open", "ftplib.", "http.")
        def note(event, args):
            if event.startswith(watched):
                seen.append((event, args))
        sys.addaudithook(note)
        for raw in eval(sys.stdin.read()):
            parsed = parse(raw)
            for attachment in parsed.attachments:
                b"".join(attachment.chunks())
        for event, args in seen:
            print(event, args)
    """)
    ended = subprocess.run(
        [sys.executable, "-c", program],
        input=repr([*mails, html_alone]),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ},
    )
    assert ended.stdout == ""


def test_what_the_hook_above_would_note() -> None:
    """S29: the hook sees a look-up and a file when there are some."""
    program = (
        "import sys, socket; seen=[]\n"
        "sys.addaudithook(lambda e, a: e.startswith(('socket.', 'open')) and seen.append(e))\n"
        "try: socket.getaddrinfo('127.0.0.1', 1)\nexcept OSError: pass\nopen('/etc/passwd')\n"
        "print(*seen)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert {"socket.getaddrinfo", "open"} <= set(ended.stdout.split())


def test_a_worker_connects_to_nothing_but_its_own_parts(system: System, address: str) -> None:
    """S29: the whole way of such a mail, in the processes' own words to the interpreter."""
    system.dovecot.deliver(address, hostile("http://127.0.0.1:9"))
    account = system.add_account(address)
    places: set[object] = set()
    watching = [True]

    def note(event: str, args: tuple[object, ...]) -> None:
        if watching and event == "socket.connect":
            places.add(args[1])

    sys.addaudithook(note)
    system.poll_and_process(account)
    watching.clear()
    (shown,) = system.messages(account)
    assert shown["status"] == "processed"
    assert places  # Dovecot at least
    ports = {place[1] for place in places if isinstance(place, tuple)}
    assert 9 not in ports
    assert ports <= own_ports(system)


def own_ports(system: System) -> set[int]:
    urls = (system.settings.database, system.settings.redis, system.settings.storage)
    known = {urlsplit(url).port for url in urls} - {None}
    return {system.dovecot.imap_port, system.dovecot.imaps_port, *known}  # type: ignore[arg-type]


# --- what databases and readers choke on


def test_what_postgresql_refuses_is_stored(system: System, address: str) -> None:
    """S30: NUL, lone surrogates and a Message-ID of a megabyte, on SQLite and PostgreSQL."""
    raw = (
        b"From: a@example.org\r\nSubject: a =?utf-8?q?=00?= b =?utf-16?b?2AA=?= c\r\n"
        b"Message-ID: <" + b"m" * 1_000_000 + b"@x>\r\nX-Odd: =?utf-8?q?=00=ED=A0=80?=\r\n"
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: text/plain; charset=utf-16\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\nAADYAAAA\r\n--b\r\n"
        b"Content-Disposition: attachment; filename*=utf-8''a%00b%ED%A0%80.txt\r\n"
        b"\r\nx\r\n--b--\r\n"
    )
    system.dovecot.deliver(address, raw)
    account = system.add_account(address)
    system.poll_and_process(account)
    (shown,) = system.messages(account)
    assert shown["status"] == "processed"
    assert "\ufffd" in shown["subject"]
    found = system.get(f"/admin/messages/{shown['id']}")
    assert "\0" not in str(found)
    answer = system.api.simulate_get(f"/admin/messages/{shown['id']}/raw")
    assert answer.content == raw


def test_a_date_that_is_none_is_null_and_the_servers_counts(system: System, address: str) -> None:
    """S34: the year 99999, a negative one and none at all."""
    dates = ["Mon, 23 Nov 99999 10:00:00 +0000", "Mon, 23 Nov -1 10:00:00 +0000", "never", ""]
    for number, date in enumerate(dates):
        raw = f"From: a@example.org\r\nSubject: {number}\r\nDate: {date}\r\n\r\nx\r\n"
        system.dovecot.deliver(address, raw.encode())
    account = system.add_account(address)
    system.poll_and_process(account)
    found = system.messages(account)
    assert len(found) == len(dates)
    assert all(one["date"] is None and one["internal_date"] for one in found)


@pytest.mark.parametrize(
    "subject", ['=HYPERLINK("http://x";"y")', "+cmd|' /C calc'!A0", "@SUM(1)", "-2+3"]
)
def test_a_formula_is_data_in_json_and_in_nothing_else(
    embedded: System, address: str, subject: str
) -> None:
    """S35: there is no CSV or spreadsheet to inject into; what there is, is JSON."""
    embedded.dovecot.deliver(address, message(subject))
    account = embedded.add_account(address)
    embedded.poll_and_process(account)
    url = f"/admin/email-accounts/{account}/messages"
    answer = embedded.api.simulate_get(url, headers={"Accept": "text/csv"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["items"][0]["subject"] == subject
    document = embedded.get("/openapi.json")["paths"]
    kinds = {
        kind
        for operations in document.values()
        for operation in operations.values()
        for given in operation["responses"].values()
        for kind in given.get("content", {})
    }
    assert kinds == {"application/json", "application/problem+json"}


def test_an_old_message_id_hides_no_mail(system: System, address: str) -> None:
    """S33: two mails with one Message-ID are two."""
    for body in ("first", "second"):
        system.dovecot.deliver(
            address, f"Message-ID: <1@x>\r\nSubject: {body}\r\n\r\n{body}\r\n".encode()
        )
    account = system.add_account(address)
    system.poll_and_process(account)
    assert {one["subject"] for one in system.messages(account)} == {"first", "second"}
