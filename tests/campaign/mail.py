"""IMAP servers that write down what they hold and what clients have done: the manifest.

One JSON object a line, appended and never changed:

* ``message``: account, folder, uidvalidity, uid, sha256, size, and the attachments' SHA-256;
* ``expunged``: the same place, when it left;
* ``session``: an account's client logged in (``began``) and said goodbye, so it saw all there was;
* ``changed``: a command that could change a mailbox. There must be none.
"""

import base64
import hashlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.servers.scripted_imap import Connection, Mailbox, Rule, ScriptedImap

#: What no client may send: it would change flags, UIDs or folders.
CHANGES = re.compile(
    r"(UID )?(STORE|COPY|MOVE|EXPUNGE)|SELECT|APPEND|CREATE|DELETE|RENAME|"
    r"(UID )?FETCH .*(BODY\[|RFC822( |\)|$|\.TEXT))",
    re.IGNORECASE,
)

#: Bytes above which a message is mostly an attachment.
LARGE = 5_000_000


class Manifest:
    """The file; each line is with the kernel before ``write`` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, what: str, **facts: Any) -> None:
        line = json.dumps({"at": time.time(), "what": what, **facts})
        os.write(self._file, line.encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


@dataclass(slots=True)
class Post(ScriptedImap):
    """The server of one account.

    Parameters:
      address: the account.
      manifest_of_all: where it writes.
    """

    address: str = ""
    manifest_of_all: Manifest | None = None
    began: dict[int, float] = field(default_factory=dict)

    def _answer(self, command: str, connection: Connection) -> bytes:
        assert self.manifest_of_all
        verb = command.upper()
        if verb.startswith("LOGIN"):
            self.began[id(connection)] = time.time()
        elif CHANGES.match(command):
            self.manifest_of_all.write("changed", account=self.address, command=command)
        elif verb == "LOGOUT" and id(connection) in self.began:
            began = self.began.pop(id(connection))
            self.manifest_of_all.write("session", account=self.address, began=began)
        return ScriptedImap._answer(self, command, connection)

    def deliver(
        self,
        raw: bytes,
        attachments: Sequence[bytes] = (),
        folder: bytes = b"INBOX",
        uid: int | None = None,
    ) -> int:
        """Put a message into a folder, which is made if need be; its UID."""
        assert self.manifest_of_all
        if folder != b"INBOX":
            self.folders.setdefault(folder, Mailbox())
        mailbox = self.mailbox(folder)
        number = mailbox.uidnext if uid is None else uid
        # The line first: what is seen must be known.
        self.manifest_of_all.write(
            "message",
            **self._place(folder, number),
            sha256=hashlib.sha256(raw).hexdigest(),
            size=len(raw),
            attachments=[hashlib.sha256(one).hexdigest() for one in attachments],
        )
        mailbox.messages[number] = raw
        return number

    def expunge(self, uid: int, folder: bytes = b"INBOX") -> None:
        assert self.manifest_of_all
        self.manifest_of_all.write("expunged", **self._place(folder, uid))
        del self.mailbox(folder).messages[uid]

    def _place(self, folder: bytes, uid: int) -> dict[str, Any]:
        return {
            "account": self.address,
            "folder": folder.decode("latin-1"),
            "uidvalidity": self.mailbox(folder).uidvalidity,
            "uid": uid,
        }


class PostOffice:
    """The servers of several accounts, each on a port of its own, with one manifest."""

    def __init__(self, path: Path) -> None:
        self.manifest = Manifest(path)
        self.posts: dict[str, Post] = {}
        self._stack = ExitStack()
        self._lock = threading.Lock()

    def open(self, address: str, rules: Sequence[Rule] = (), **options: Any) -> Post:
        """The server of a new account."""
        post = Post(address=address, manifest_of_all=self.manifest, rules=rules, **options)
        with self._lock:
            self._stack.enter_context(post)
            self.posts[address] = post
        return post

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.manifest.close()


def letter(
    chance: random.Random, number: int, attachments: int = 0, size: int = 300
) -> tuple[bytes, list[bytes]]:
    """A message that no other is like, of about ``size`` bytes, and its attachments' contents.

    Of a large one most is an attachment: texts of many megabytes are kept as such.
    """
    large = size > LARGE
    head = [
        "From: Ann Example <ann@example.org>",
        "To: team@example.org",
        f"Subject: message {number}",
        "Date: Mon, 23 Nov 2026 10:00:00 +0000",
        f"Message-ID: <{chance.getrandbits(64):x}.{number}@example.org>",
        "MIME-Version: 1.0",
    ]
    words = base64.b64encode(chance.randbytes((300 if large else size) * 3 // 4)).decode()
    lines = [words[start : start + 76] for start in range(0, len(words), 76)]
    if not attachments and not large:
        head.append("Content-Type: text/plain; charset=us-ascii")
        return "\r\n".join([*head, "", *lines, ""]).encode(), []
    head.append('Content-Type: multipart/mixed; boundary="part"')
    contents = [chance.randbytes(200 + 10 * index) for index in range(attachments)]
    contents += [chance.randbytes(size * 3 // 4)] if large else []
    parts = ["--part", "Content-Type: text/plain; charset=us-ascii", "", *lines]
    for index, content in enumerate(contents):
        parts += [
            "--part",
            f'Content-Type: application/octet-stream; name="file{index}.bin"',
            f'Content-Disposition: attachment; filename="file{index}.bin"',
            "Content-Transfer-Encoding: base64",
            "",
            *base64.encodebytes(content).decode().splitlines(),
        ]
    return "\r\n".join([*head, "", *parts, "--part--", ""]).encode(), contents
