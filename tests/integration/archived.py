"""Accounts with certain messages, and what is in archives of them."""

import hashlib
import json
import os
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

from mailpoll import database, runtime
from mailpoll.archives import intake
from mailpoll.models import EmailAccount, EmailRawMessage
from tests.integration.rows import account_row
from tests.integration.system import System, wait_until

ACCOUNTS = "/admin/email-accounts"
EXPORTS = "/admin/exports"
FORMATS = ["mbox", "zip", "maildir"]
SUFFIXES = {"mbox": ".mbox", "zip": ".zip", "maildir": ".tar"}


def environment() -> dict[str, str]:
    """What configures a command like this process."""
    names = ("MAILPOLL_", "REDIS_URL", "DATABASE_URL", "STORAGE_URL")
    return {n: v for n, v in os.environ.items() if n.startswith(names) and "TEST" not in n}


def add_archive(system: System, address: str) -> str:
    """An account without a server; its id."""
    return str(system.post(ACCOUNTS, 201, address=address, archive=True)["id"])


def fill(system: System, directory: Path, account: str, mails: list[bytes], **fields: Any) -> None:
    """Import messages, one file each, and process them."""
    for number, mail in enumerate(mails):
        path = directory / "fill" / fields.get("folder", "x") / f"{number:04}.eml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mail)
    intake.run(account_row(account), [directory / "fill" / fields.get("folder", "x")], **fields)
    process(system, account)


def process(system: System, account: str) -> None:
    """Let workers do what waits for them."""

    def done() -> bool:
        return bool(system.get(f"{ACCOUNTS}/{account}/stats")["by_status"]["stored"] == 0)

    system.work_until(done)


def upload(system: System, account: str, body: bytes, status: int = 200, **query: Any) -> Any:
    answer = system.api.simulate_post(f"{ACCOUNTS}/{account}/import", body=body, params=query)
    assert answer.status_code == status, answer.text
    return answer.json


def download(system: System, account: str, kind: str, **query: Any) -> bytes:
    url = f"{ACCOUNTS}/{account}/export"
    answer = system.api.simulate_get(url, params={"format": kind, **query})
    assert answer.status_code == 200, answer.text
    return answer.content


def raws(account: str) -> list[bytes]:
    """The stored bytes of all messages, read back."""
    table = EmailRawMessage
    with database.connected():
        rows = list(table.select().join(EmailAccount).where(EmailAccount.uuid == account))
    found = []
    for row in rows:
        with runtime.storage().open(row.storage_key, row.storage_type) as stream:
            found.append(stream.read())
        assert hashlib.sha256(found[-1]).hexdigest() == row.sha256
    return sorted(found)


def places(account: str) -> dict[str, list[str]]:
    """SHA-256 of each message to the folders that an archive names for it."""
    from mailpoll.archives import Selection, selection

    found = selection.entries(account_row(account), Selection())
    return {one.sha256: sorted(one.folders) for one in found}


def dates(account: str) -> dict[str, Any]:
    from mailpoll.archives import Selection, selection

    found = selection.entries(account_row(account), Selection())
    return {one.sha256: one.internal_date for one in found}


def manifest(kind: str, data: bytes) -> list[dict[str, Any]]:
    """The lines of an archive's manifest."""
    pieces: list[bytes] = []
    if kind == "manifest":
        pieces = [data]
    elif kind == "zip":
        with zipfile.ZipFile(BytesIO(data)) as opened:
            pieces = [opened.read(n) for n in sorted(opened.namelist()) if n.endswith(".jsonl")]
    else:
        with tarfile.open(fileobj=BytesIO(data)) as opened:
            for name in sorted(opened.getnames()):
                if name.endswith(".jsonl"):
                    file = opened.extractfile(name)
                    assert file
                    pieces.append(file.read())
    return [json.loads(line) for piece in pieces for line in piece.splitlines()]


def finished(system: System, export: str) -> Any:
    """An export when it is over."""
    url = f"{EXPORTS}/{export}"
    with system.workers():
        wait_until(lambda: system.get(url)["state"] != "running")
    return system.get(url)
