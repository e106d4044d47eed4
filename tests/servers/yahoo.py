"""Yahoo's view of a mailbox: the newest 10,000 messages, unless the client knows UIDs only.

RFC 9586 (UIDONLY), RFC 9738 (MESSAGELIMIT); the figures are those that its servers announce.
"""

import re
from dataclasses import dataclass

from tests.servers.scripted_imap import Connection, Mailbox, ScriptedImap

VIEW = 10_000
LIMIT = 1_000
FETCH = re.compile(rb"^\* \d+ FETCH \(UID (\d+)", re.MULTILINE)


@dataclass(slots=True)
class Yahoo(ScriptedImap):
    capabilities: bytes = b"IMAP4rev1 ID ENABLE UIDONLY PARTIAL ESEARCH MESSAGELIMIT=1000"
    #: Whether any client asked for UIDs only; there is one at a time in the tests.
    uid_only: bool = False

    def answer(self, command: str, connection: Connection | None = None) -> bytes:
        verb = command.upper()
        if verb == "ENABLE UIDONLY":
            self.uid_only = True
            return b"* ENABLED UIDONLY\r\n{tag} OK done\r\n"
        if verb.startswith("LOGIN"):
            self.uid_only = False
        if verb.startswith("UID FETCH"):
            return self._limited(verb, connection or Connection())
        return ScriptedImap.answer(self, command, connection)

    def _limited(self, verb: str, connection: Connection) -> bytes:
        """Answer for the newest messages of the range, and say where it was cut."""
        mailbox = self.mailbox(connection.folder)
        view = self._view(mailbox)
        asked = [uid for uid in self._uids(verb.split()[2], mailbox) if uid in view]
        chosen = asked[-LIMIT:]
        words = verb.split(" ", 3)
        words[2] = ",".join(map(str, chosen)) or "0"
        lines = self._fetch(" ".join(words), connection.folder) if chosen else b""
        if self.uid_only:
            lines = FETCH.sub(rb"* \1 UIDFETCH (UID \1", lines)
        if len(asked) > len(chosen):
            return lines + b"{tag} OK [MESSAGELIMIT %d %d] partial\r\n" % (LIMIT, chosen[0])
        return lines + b"{tag} OK done\r\n"

    def _view(self, mailbox: Mailbox) -> set[int] | dict[int, bytes]:
        return mailbox.messages if self.uid_only else set(mailbox.uids()[-VIEW:])
