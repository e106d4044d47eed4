"""An IMAP server that does as a test says, for what Dovecot cannot be made to do.

A script is a list of rules: a pattern of the client's command and what to answer. ``{tag}`` in an
answer stands for the command's tag. The first rule that matches is used; what no rule matches is
answered like a small well-behaved server would.
"""

import re
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

CLOSE = b"\0close"
Answer = bytes | Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Rule:
    """``answer`` to commands that match ``pattern``; at most ``times`` times."""

    pattern: str
    answer: Answer
    times: int = 1_000_000


@dataclass(slots=True)
class ScriptedImap:
    """Serves connections in threads, in plain text on a loopback port.

    Parameters:
      messages: UID to raw bytes of INBOX, served by the default answers.
      greeting: the first line.
    """

    messages: dict[int, bytes] = field(default_factory=dict)
    rules: Sequence[Rule] = ()
    greeting: bytes = b"* OK ready\r\n"
    uidvalidity: int = 1
    capabilities: bytes = b"IMAP4rev1"
    #: Every command that any client sent, without its tag.
    commands: list[str] = field(default_factory=list)
    port: int = 0
    _used: dict[int, int] = field(default_factory=dict)
    _listener: socket.socket | None = None

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._listener
        self._listener.close()

    def _accept(self) -> None:
        assert self._listener
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as file:
            client.sendall(self.greeting)
            try:
                for line in file:
                    tag, _, command = line.rstrip(b"\r\n").partition(b" ")
                    self.commands.append(command.decode("latin-1"))
                    answer = self._answer(command.decode("latin-1"))
                    before, closing, _ = answer.replace(b"{tag}", tag).partition(CLOSE)
                    client.sendall(before)
                    if closing or command.upper() == b"LOGOUT":
                        return
            except OSError:
                return

    def _answer(self, command: str) -> bytes:
        for position, rule in enumerate(self.rules):
            used = self._used.get(position, 0)
            if used < rule.times and re.match(rule.pattern, command, re.IGNORECASE):
                self._used[position] = used + 1
                return rule.answer if isinstance(rule.answer, bytes) else rule.answer()
        return self._default(command)

    def _default(self, command: str) -> bytes:
        verb = command.upper()
        done = b"{tag} OK done\r\n"
        if verb.startswith("CAPABILITY"):
            return b"* CAPABILITY " + self.capabilities + b"\r\n" + done
        if verb.startswith("LIST"):
            return b'* LIST () "/" INBOX\r\n' + done
        if verb.startswith("STATUS"):
            return (
                b"* STATUS INBOX (MESSAGES %d UIDNEXT %d UIDVALIDITY %d)\r\n"
                % (len(self.messages), self.uidnext, self.uidvalidity)
            ) + done
        if verb.startswith("EXAMINE"):
            return (
                b"* %d EXISTS\r\n* OK [UIDVALIDITY %d] ok\r\n* OK [UIDNEXT %d] ok\r\n"
                % (len(self.messages), self.uidvalidity, self.uidnext)
            ) + done
        if verb.startswith("UID FETCH"):
            return self._fetch(verb) + done
        return done

    @property
    def uidnext(self) -> int:
        return max(self.messages, default=0) + 1

    def _fetch(self, verb: str) -> bytes:
        uids = self._uids(verb.split()[2])
        part = re.search(r"BODY\.PEEK\[\]<(\d+)\.(\d+)>", verb)
        lines = []
        for number, uid in enumerate(sorted(self.messages), 1):
            raw = self.messages[uid]
            if uid not in uids:
                continue
            if part:
                offset = int(part[1])
                raw = raw[offset : offset + int(part[2])]
                lines.append(
                    b"* %d FETCH (UID %d BODY[]<%d> {%d}\r\n" % (number, uid, offset, len(raw))
                )
                lines.append(raw + b")\r\n")
            elif "BODY.PEEK" in verb:
                lines.append(b"* %d FETCH (UID %d BODY[] {%d}\r\n" % (number, uid, len(raw)))
                lines.append(raw + b")\r\n")
            else:
                lines.append(
                    b"* %d FETCH (UID %d RFC822.SIZE %d "
                    b'INTERNALDATE "23-Nov-2026 10:00:00 +0000")\r\n' % (number, uid, len(raw))
                )
        return b"".join(lines)

    def _uids(self, uid_set: str) -> set[int]:
        found: set[int] = set()
        highest = max(self.messages, default=0)
        for item in uid_set.split(","):
            first, _, last = item.partition(":")
            ends = sorted(highest if end == "*" else int(end) for end in (first, last or first))
            found |= {uid for uid in self.messages if ends[0] <= uid <= ends[1]}
        return found
