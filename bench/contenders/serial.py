"""The loop that everybody writes first: one mailbox after the other, one message after the other.

Run as a script it is given one JSON file, which also holds what it knows from the last run.
"""

import email
import email.policy
import hashlib
import json
import ssl
import sys
from pathlib import Path
from typing import Any

from imapclient import IMAPClient

from bench.contenders.script import Script


class Serial(Script):
    """IMAPClient, the standard library's parser, a file for each message."""

    name = "serial"
    slow = True
    module = __name__

    def verified(self, sent: set[str]) -> int:
        files = self.directory.glob("*/*.eml")
        return len(sent & {hashlib.sha256(file.read_bytes()).hexdigest() for file in files})


def main() -> None:
    path = Path(sys.argv[1])
    job = json.loads(path.read_text())
    context = ssl.create_default_context(cafile=job["ca_file"])
    last = job.setdefault("last", {})
    for user in job["users"]:
        last[user] = mailbox(job, context, user, last.get(user, 0))
    path.write_text(json.dumps(job))


def mailbox(job: dict[str, Any], context: ssl.SSLContext, user: str, last: int) -> int:
    """Fetch what came after UID ``last``; the UID that is the last now."""
    directory = Path(job["directory"]) / user
    directory.mkdir(exist_ok=True)
    with IMAPClient(job["host"], job["port"], ssl_context=context) as client:
        client.login(user, job["password"])
        client.select_folder("INBOX", readonly=True)
        # A range with a star in it always has the newest message in it too.
        for uid in client.search(["UID", f"{last + 1}:*"]):
            if uid <= last:
                continue
            raw = client.fetch([uid], ["BODY.PEEK[]"])[uid][b"BODY[]"]
            (directory / f"{uid}.eml").write_bytes(raw)
            message = email.message_from_bytes(raw, policy=email.policy.default)
            for part in message.walk():
                if not part.is_multipart():
                    part.get_content()
            last = uid
    return last


if __name__ == "__main__":
    main()
