"""The sample mail server: ``mail-devel``, which keeps what it receives in memory.

``python -m mailpoll.demo.server IMAP_PORT SMTP_PORT`` serves on loopback until SIGTERM. Any user
name is a mailbox; all have one password. Unlike mail-devel itself it keeps the bytes of a message
as they came over SMTP, so that what mailpoll stores can be compared with what was sent.
"""

import asyncio
import signal
import sys
from datetime import UTC, datetime

from aiosmtpd.smtp import SMTP, Envelope, Session
from mail_devel.service import Service
from mail_devel.smtp import MemoryHandler
from pymap.parsing.message import AppendMessage

PASSWORD = "sample-password"  # noqa: S105 - of a server on loopback that holds invented mail
HOST = "127.0.0.1"


class ExactHandler(MemoryHandler):  # type: ignore[misc]
    """Delivers by the envelope's recipients, byte for byte."""

    async def handle_DATA(  # noqa: N802 - the name is aiosmtpd's
        self,
        server: SMTP,  # noqa: ARG002
        session: Session,  # noqa: ARG002
        envelope: Envelope,
    ) -> str:
        for recipient in envelope.rcpt_tos:
            account = await self.mailboxes.get(recipient)
            inbox = await account.get_mailbox("INBOX")
            content = bytes(envelope.original_content or b"")
            await inbox.append(AppendMessage(content, datetime.now(UTC), frozenset()))
        return "250 OK"


async def serve(imap_port: int, smtp_port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    options = Service.parse(
        [
            *("--host", HOST, "--multi-user", "--user", "demo@example.org"),
            *("--password", PASSWORD, "--imap-port", str(imap_port)),
            *("--smtp-port", str(smtp_port), "--no-http"),
        ]
    )
    service = await Service.init(options)
    service.smtp.handler = ExactHandler(service.mailboxes, multi_user=True)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with service.start():
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
