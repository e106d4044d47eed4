"""An IMAP server that does as a test says, for what Dovecot cannot be made to do.

A script is a list of rules: a pattern of the client's command and what to answer. ``{tag}`` in an
answer stands for the command's tag. The first rule that matches is used; what no rule matches is
answered like a small well-behaved server would, from the mailboxes that the test has filled.

Everything that was listed or served whole is written into a manifest, against which a test checks
what mailpoll has made of it.
"""

import bisect
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

#: What an answer may hold besides bytes to send, each in one piece.
CLOSE = b"\0close"
RESET = b"\0reset"
HANG = b"\0hang"
ACTIONS = re.compile(rb"(\0close|\0reset|\0hang|\0pause\d+;)")

Answer = bytes | Callable[[], bytes]

DATE = "23-Nov-2026 10:00:00 +0000"


def pause(milliseconds: int) -> bytes:
    """Wait before the rest of the answer is sent."""
    return b"\0pause%d;" % milliseconds


@dataclass(frozen=True, slots=True)
class Rule:
    """``answer`` to commands that match ``pattern``; at most ``times`` times, after ``skip``."""

    pattern: str
    answer: Answer
    times: int = 1_000_000
    skip: int = 0


@dataclass(slots=True)
class Mailbox:
    """One folder.

    Parameters:
      messages: UID to raw bytes.
      hidden: UIDs that are counted but never listed or sent.
      next_uid: what is told as UIDNEXT; ``None`` tells the truth.
      flags: what LIST says of the folder.
      dates: UID to INTERNALDATE.
      marks: UID to the flags of a message, and ``labels`` to Gmail's, as they go over the wire.
      modseq: what is told as HIGHESTMODSEQ; ``None`` tells nothing.
      modseqs: UID to the mod-sequence of a message; 1 where it is missing.
      vanished: what is told as VANISHED to those who ask what has changed.
    """

    messages: dict[int, bytes] = field(default_factory=dict)
    uidvalidity: int = 1
    hidden: set[int] = field(default_factory=set)
    next_uid: int | None = None
    flags: bytes = b""
    dates: dict[int, str] = field(default_factory=dict)
    marks: dict[int, bytes] = field(default_factory=dict)
    labels: dict[int, bytes] = field(default_factory=dict)
    modseq: int | None = None
    modseqs: dict[int, int] = field(default_factory=dict)
    vanished: bytes = b""
    _sorted: list[int] = field(default_factory=list)

    @property
    def uidnext(self) -> int:
        return max(self.messages, default=0) + 1 if self.next_uid is None else self.next_uid

    def uids(self) -> list[int]:
        """All UIDs, ascending; a very large folder is sorted again when its size changes."""
        if len(self.messages) < 5_000 or len(self._sorted) != len(self.messages):
            self._sorted = sorted(self.messages)
        return self._sorted

    def between(self, first: int, last: int) -> list[int]:
        """Listed UIDs of a range, ascending."""
        uids = self.uids()
        found = uids[bisect.bisect_left(uids, first) : bisect.bisect_right(uids, last)]
        return [uid for uid in found if uid in self.messages and uid not in self.hidden]

    def marked(self, verb: str, uid: int) -> bytes:
        """What a FETCH answer tells of flags and labels, as far as it was asked for."""
        found = b""
        if "FLAGS" in verb:
            found += b" FLAGS (%b)" % self.marks.get(uid, b"")
        if "X-GM-LABELS" in verb:
            found += b" X-GM-LABELS (%b)" % self.labels.get(uid, b"")
        return found


@dataclass(slots=True)
class Connection:
    """What one client has done so far."""

    tag: bytes = b""
    #: The tag of the IDLE that it is in, which ``DONE`` ends.
    idling: bytes = b""
    folder: bytes = b"INBOX"
    authenticated: bool = False
    identified: bool = False


@dataclass(slots=True)
class ScriptedImap:
    """Serves connections in threads, in plain text on a loopback port.

    Parameters:
      messages: UID to raw bytes of INBOX.
      folders: other folders by their wire names.
      greeting: the first line.
      manifest_file: where the manifest is written as JSON lines.
      port: 0 takes any that is free.
    """

    messages: dict[int, bytes] = field(default_factory=dict)
    rules: Sequence[Rule] = ()
    greeting: bytes = b"* OK ready\r\n"
    uidvalidity: int = 1
    capabilities: bytes = b"IMAP4rev1"
    folders: dict[bytes, Mailbox] = field(default_factory=dict)
    delimiter: bytes = b"/"
    manifest_file: Path | None = None
    #: Every command that any client sent, without its tag.
    commands: list[str] = field(default_factory=list)
    #: (folder, UIDVALIDITY, UID) to SHA-256 of what was sent whole.
    manifest: dict[tuple[str, int, int], str] = field(default_factory=dict)
    #: Connections that are open now, and the most that ever were.
    open: int = 0
    most: int = 0
    port: int = 0
    inbox: Mailbox = field(default_factory=Mailbox)
    #: The connection that sent the latest command.
    latest: Connection = field(default_factory=Connection)
    _used: dict[int, int] = field(default_factory=dict)
    _listener: socket.socket | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.inbox.messages = self.messages

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._listener
        self._listener.close()

    @property
    def uidnext(self) -> int:
        return self.mailbox(b"INBOX").uidnext

    def mailbox(self, name: bytes) -> Mailbox:
        """A folder; INBOX has the messages and UIDVALIDITY that the server was made with."""
        if name.upper() != b"INBOX":
            return self.folders[name]
        self.inbox.messages, self.inbox.uidvalidity = self.messages, self.uidvalidity
        return self.inbox

    # Connections

    def _accept(self) -> None:
        assert self._listener
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self.open += 1
            self.most = max(self.most, self.open)
        try:
            with client, client.makefile("rb") as file:
                self._converse(client, file)
        except OSError:
            pass
        finally:
            with self._lock:
                self.open -= 1

    def _converse(self, client: socket.socket, file: Any) -> None:
        connection = Connection()
        if not self._send(client, self.greeting):
            return
        for line in file:
            tag, _, command = line.rstrip(b"\r\n").partition(b" ")
            if tag == b"DONE":
                tag, command = connection.idling, tag
            elif command == b"IDLE":
                connection.idling = tag
            connection.tag = tag
            self.latest = connection
            text = command.decode("latin-1")
            self.commands.append(text)
            answer = self._answer(text, connection).replace(b"{tag}", tag)
            if not self._send(client, answer) or text.upper() == "LOGOUT":
                return

    def _send(self, client: socket.socket, answer: bytes) -> bool:
        """Send an answer with the actions in it; false when the connection is to end."""
        for piece in ACTIONS.split(answer):
            if piece == CLOSE:
                return False
            if piece == RESET:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            if piece == HANG:
                client.settimeout(30)
                client.recv(1)
                return False
            if piece.startswith(b"\0pause"):
                time.sleep(int(piece[6:-1]) / 1_000)
            elif piece:
                client.sendall(piece)
        return True

    # Answers

    def _answer(self, command: str, connection: Connection) -> bytes:
        for position, rule in enumerate(self.rules):
            if not re.match(rule.pattern, command, re.IGNORECASE):
                continue
            used = self._used.get(position, 0)
            if used < rule.times + rule.skip:
                self._used[position] = used + 1
                if used >= rule.skip:
                    return rule.answer if isinstance(rule.answer, bytes) else rule.answer()
        return self.answer(command, connection)

    def answer(self, command: str, connection: Connection | None = None) -> bytes:
        """What a well-behaved server says."""
        connection = connection or Connection()
        verb = command.upper()
        done = b"{tag} OK done\r\n"
        if verb.startswith("CAPABILITY"):
            return b"* CAPABILITY " + self.capabilities + b"\r\n" + done
        if verb.startswith(("LOGIN", "AUTHENTICATE")):
            connection.authenticated = True
        if verb.startswith("ID "):
            connection.identified = True
        if verb == "IDLE" and b"IDLE" in self.capabilities:
            return b"+ idling\r\n"
        if verb.startswith("ENABLE "):
            return b"* ENABLED" + command[6:].encode() + b"\r\n" + done
        if verb.startswith("LIST"):
            with_status = "LIST-STATUS" in self.capabilities.decode()
            changes = "HIGHESTMODSEQ" in verb
            return b"".join(self._list(with_status, changes=changes)) + done
        if verb.startswith("STATUS"):
            name = _name(command, 1)
            if name.upper() != b"INBOX" and name not in self.folders:
                return b"{tag} NO [NONEXISTENT] no such folder\r\n"
            sizes, changes = " SIZE)" in verb, "HIGHESTMODSEQ" in verb
            return self._status(name, sizes=sizes, changes=changes) + done
        if verb.startswith("EXAMINE"):
            return self._examine(_name(command, 1), connection)
        if verb.startswith("UID SEARCH"):
            return self._search(verb, connection) + done
        if verb.startswith("UID FETCH"):
            return self._fetch(verb, connection.folder) + done
        return done

    def _list(self, with_status: bool, *, changes: bool = False) -> Iterator[bytes]:
        yield b'* LIST () "%b" INBOX\r\n' % self.delimiter
        for name, mailbox in self.folders.items():
            yield b'* LIST (%b) "%b" %b\r\n' % (mailbox.flags, self.delimiter, _quoted(name))
        if with_status:
            yield self._status(b"INBOX", changes=changes)
            for name, mailbox in self.folders.items():
                if b"\\Noselect" not in mailbox.flags:
                    yield self._status(name, changes=changes)

    def _status(self, name: bytes, *, sizes: bool = False, changes: bool = False) -> bytes:
        mailbox = self.mailbox(name)
        told = changes and mailbox.modseq is not None
        change = b" HIGHESTMODSEQ %d" % mailbox.modseq if told else b""
        size = b" SIZE %d" % sum(map(len, mailbox.messages.values())) if sizes else b""
        return b"* STATUS %b (MESSAGES %d UIDNEXT %d UIDVALIDITY %d%b%b)\r\n" % (
            _quoted(name),
            len(mailbox.messages),
            mailbox.uidnext,
            mailbox.uidvalidity,
            size,
            change,
        )

    def _examine(self, name: bytes, connection: Connection) -> bytes:
        if name.upper() != b"INBOX" and name not in self.folders:
            return b"{tag} NO [NONEXISTENT] no such folder\r\n"
        connection.folder = name
        mailbox = self.mailbox(name)
        told = mailbox.modseq
        change = (
            b"* OK [NOMODSEQ] ok\r\n" if told is None else b"* OK [HIGHESTMODSEQ %d]\r\n" % told
        )
        return (
            b"* %d EXISTS\r\n* OK [UIDVALIDITY %d] ok\r\n* OK [UIDNEXT %d] ok\r\n%b"
            b"{tag} OK [READ-ONLY] done\r\n"
            % (len(mailbox.messages), mailbox.uidvalidity, mailbox.uidnext, change)
        )

    def _search(self, verb: str, connection: Connection) -> bytes:
        mailbox = self.mailbox(connection.folder)
        uids = self._uids(verb.rpartition(" ")[2], mailbox)
        if "RETURN" not in verb:
            return b"* SEARCH " + b" ".join(b"%d" % uid for uid in uids) + b"\r\n"
        found = b",".join(b"%d" % uid for uid in uids)
        return b'* ESEARCH (TAG "%b") UID%b\r\n' % (
            connection.tag,
            b" ALL " + found if found else b"",
        )

    def _fetch(self, verb: str, folder: bytes = b"INBOX") -> bytes:
        mailbox = self.mailbox(folder)
        part = re.search(r"BODY\.PEEK\[\]<(\d+)\.(\d+)>", verb)
        lines = []
        since = re.search(r"CHANGEDSINCE (\d+)", verb)
        if since and " VANISHED)" in verb and mailbox.vanished:
            lines.append(b"* VANISHED (EARLIER) %b\r\n" % mailbox.vanished)
        for uid in self._uids(verb.split()[2], mailbox):
            if since and mailbox.modseqs.get(uid, 1) <= int(since[1]):
                continue
            raw = mailbox.messages[uid]
            number = bisect.bisect_left(mailbox.uids(), uid) + 1
            if part:
                offset = int(part[1])
                if offset + int(part[2]) >= len(raw):
                    self._note(folder, mailbox, uid, raw)
                raw = raw[offset : offset + int(part[2])]
                lines.append(
                    b"* %d FETCH (UID %d BODY[]<%d> {%d}\r\n%b)\r\n"
                    % (number, uid, offset, len(raw), raw)
                )
            elif "BODY.PEEK[HEADER]" in verb:
                head = raw[: raw.find(b"\r\n\r\n") + 4]
                lines.append(
                    b"* %d FETCH (UID %d BODY[HEADER] {%d}\r\n%b)\r\n"
                    % (number, uid, len(head), head)
                )
            elif "BODY.PEEK" in verb:
                self._note(folder, mailbox, uid, raw)
                lines.append(
                    b"* %d FETCH (UID %d BODY[] {%d}\r\n%b)\r\n" % (number, uid, len(raw), raw)
                )
            elif "INTERNALDATE" in verb:
                date = mailbox.dates.get(uid, DATE).encode()
                lines.append(
                    b'* %d FETCH (UID %d RFC822.SIZE %d INTERNALDATE "%b"%b%b)\r\n'
                    % (
                        number,
                        uid,
                        len(raw),
                        date,
                        _content_name(verb, raw),
                        mailbox.marked(verb, uid),
                    )
                )
            else:
                lines.append(
                    b"* %d FETCH (UID %d%b)\r\n" % (number, uid, mailbox.marked(verb, uid))
                )
        return b"".join(lines)

    def _note(self, folder: bytes, mailbox: Mailbox, uid: int, raw: bytes) -> None:
        digest = hashlib.sha256(raw).hexdigest()
        key = (folder.decode("latin-1"), mailbox.uidvalidity, uid)
        with self._lock:
            self.manifest[key] = digest
            if self.manifest_file:
                with self.manifest_file.open("a") as file:
                    file.write(json.dumps([*key, digest, len(raw)]) + "\n")

    def _uids(self, uid_set: str, mailbox: Mailbox) -> list[int]:
        found: set[int] = set()
        highest = max(mailbox.uids(), default=0)
        for item in uid_set.split(","):
            first, _, last = item.partition(":")
            low, high = sorted(highest if e == "*" else int(e) for e in (first, last or first))
            found.update(mailbox.between(low, high))
        return sorted(found)


def _content_name(verb: str, raw: bytes) -> bytes:
    """What the server calls a content, when the client asks for it."""
    digest = hashlib.sha256(raw).hexdigest()[:12]
    if "X-GM-MSGID" in verb:
        return b" X-GM-MSGID %d" % int(digest, 16)
    return b" EMAILID (M%b)" % digest.encode() if "EMAILID" in verb else b""


def _quoted(name: bytes) -> bytes:
    return b'"' + name.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _name(command: str, position: int) -> bytes:
    """The folder name in a command, quoted or bare."""
    rest = command.split(" ", position)[position].encode("latin-1")
    quoted = re.match(rb'"((?:[^"\\]|\\.)*)"', rest)
    return re.sub(rb"\\(.)", rb"\1", quoted[1]) if quoted else rest.split(b" ")[0]
