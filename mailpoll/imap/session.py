"""One authenticated connection to a server, reading only.

Folder lists and messages are read by the code here, straight from the wire: the parser of
``IMAPClient`` would hold every body three times.
"""

import math
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ..settings import Settings
from . import responses
from .connection import (
    Client,
    Login,
    authenticate,
    connection_to,
    demands_id,
    enable,
    id_arguments,
    identify,
    scrubbed,
    start_tls,
    translated,
)
from .errors import WORDS, Fault, ImapError, refusal
from .responses import Fetched, Listed, Literal, Status
from .wire import LINE_LIMIT, LITERAL, WireIMAP4

#: Commands on their way at once; more could fill both sides' socket buffers and stand still.
PIPELINE = 100
#: Untagged lines that one command may be answered with; honest lists are far shorter.
ANSWER_LINES = 200_000
#: Bytes of one command's answer when no body was asked for.
ANSWER_BYTES = 64_000_000
#: Lines that one response may be made of, each but the last before a literal, and bytes of those
#: after the first.
RESPONSE_LINES, NEXT_LINE = 20, 1_000_000
#: Parts that a message may be long which was announced as short and comes in one piece.
WHOLE_FACTOR = 4
#: Bytes of a message from a server that sends the whole when asked for a part.
WHOLE_BYTES = 64_000_000
#: Characters of a UID set in one command: some servers refuse lines over 1,000 (RFC 2683 3.2.1.5).
SET_LENGTH = 900


@contextmanager
def connect(login: Login, settings: Settings, seconds: float) -> Iterator["Session"]:
    """An open session for the block.

    Parameters:
      seconds: total time that the whole conversation may take.

    Raises:
      ImapError: of every kind; nothing else comes out of this package.
    """
    imap = connection_to(login, settings, time.monotonic() + seconds)
    session = Session(imap, settings)
    try:
        if login.security == "starttls":
            start_tls(imap, login, settings)
        offered = imap.capabilities()
        authenticate(imap, login)
        enable(imap, login)
        session.introduce(login, offered)
        yield session
        session.log_out()
    finally:
        with suppress(Exception):
            imap.shutdown()


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a message; ``last`` when nothing comes after it."""

    data: bytes
    last: bool


def _merge(found: dict[int, Fetched], answer: Fetched) -> None:
    """Servers may spread one message over several answers; what came first counts."""
    known = found.setdefault(answer.uid or 0, answer)
    known.size = answer.size if known.size is None else known.size
    known.internal_date = known.internal_date or answer.internal_date
    known.email_id = known.email_id or answer.email_id
    # Of flags the latest counts.
    known.flags = known.flags if answer.flags is None else answer.flags
    known.labels = known.labels if answer.labels is None else answer.labels


class Session:
    """Commands of an authenticated connection. Every method may raise ``ImapError``."""

    def __init__(self, imap: Client, settings: Settings) -> None:
        self._imap = imap
        self._settings = settings
        #: The text of the last command's OK.
        self._completion = b""
        #: Tell flags along with the other facts of messages.
        self.flags = False
        #: What the server has said that it does from now on (RFC 5161).
        self._enabled: set[bytes] = set()
        #: Ranges of UIDs that it said are gone, since they were last asked for.
        self._vanished: list[tuple[int, int]] = []

    @property
    def _connection(self) -> WireIMAP4:
        return self._imap._imap  # type: ignore[no-any-return]

    def introduce(self, login: Login, offered: Sequence[bytes]) -> None:
        """Say who we are. Only where that is demanded the answer is waited for.

        Elsewhere it is passed over with the answers to the next command, which saves a round trip.
        """
        if demands_id(login):
            identify(self._imap, login, offered)
        elif b"ID" in offered or self.supports("ID"):
            self._send(b"ID " + id_arguments().encode())

    def while_reading(self, call: Callable[[], None]) -> None:
        """Have ``call`` called whenever bytes come in, however slowly."""
        self._connection.wire.while_reading = call

    def run(self, line: bytes) -> None:
        """A command of which only the end matters."""
        for _ in self._untagged(line):
            pass

    def hand_over(self) -> tuple[socket.socket, bytes]:
        """The socket, which does not block, and what has come on it, for others to read.

        The conversation has no end from now on.
        """
        wire = self._connection.wire
        wire.deadline = math.inf
        return wire.sock, wire.held()

    def send_command(self, line: bytes) -> bytes:
        """Send a command whose answer is read by who has the socket; its tag."""
        return self._send(line)

    def supports(self, capability: str) -> bool:
        with translated(""):
            return bool(self._imap.has_capability(capability))

    def follow_changes(self) -> None:
        """Have the server tell what was removed, where it can; before any folder is opened.

        Its answer is passed over with that to the next command, which saves a round trip.
        """
        self.flags = True
        if self.supports("QRESYNC") and self.supports("ENABLE"):
            self._send(b"ENABLE QRESYNC")

    def _status_items(self, modseq: bool, more: bytes = b"") -> bytes:
        change = b" HIGHESTMODSEQ" if modseq and self.supports("CONDSTORE") else b""
        return b"(UIDNEXT UIDVALIDITY MESSAGES%b%b)" % (change, more)

    def list_folders(self, *, modseq: bool = False) -> tuple[list[Listed], dict[bytes, Status]]:
        """All folders, and the status of each where one command can tell both (RFC 5819).

        Parameters:
          modseq: ask for HIGHESTMODSEQ too, of servers that have it.
        """
        folders: list[Listed] = []
        statuses: dict[bytes, Status] = {}
        line = b'LIST "" "*"'
        if self.supports("LIST-STATUS"):
            line += b" RETURN (STATUS " + self._status_items(modseq) + b")"
        for name, words in self._untagged(line):
            if name == b"LIST":
                found = responses.listed(words)
                if found:
                    folders.append(found)
            elif name == b"STATUS" and len(words) > 1 and isinstance(words[1], list):
                statuses[words[0]] = responses.status(words[1])
        return folders, statuses

    def statuses(
        self, wire_names: Sequence[bytes], *, sizes: bool = False, modseq: bool = False
    ) -> dict[bytes, Status]:
        """The status of each folder, many commands sent before the first answer is read.

        Parameters:
          sizes: ask for the bytes of each too, of servers that support ``STATUS=SIZE``.
          modseq: as for ``list_folders``.
        """
        items = b" " + self._status_items(modseq, b" SIZE" if sizes else b"")
        found: dict[bytes, Status] = {}
        for start in range(0, len(wire_names), PIPELINE):
            tags = [
                self._send(b"STATUS " + quote(name) + items)
                for name in wire_names[start : start + PIPELINE]
            ]
            for tag in tags:
                with suppress(_Refused):
                    for name, words in self._answers(tag):
                        if name == b"STATUS" and len(words) > 1 and isinstance(words[1], list):
                            found[words[0]] = responses.status(words[1])
        return found

    def examine(self, wire_name: bytes) -> Status:
        """Open a folder read-only.

        Raises:
          ImapError: ``REFUSED`` when it cannot be opened, for instance because it is gone.
        """
        found = Status()
        for name, words in self._untagged(b"EXAMINE " + quote(wire_name)):
            if name.isdigit() and words and words[0] == b"EXISTS":
                found.messages = int(name)
            elif name == b"OK" and len(words) > 1 and isinstance(words[0], bytes):
                value = (
                    responses.number(words[1].rstrip(b"]")) if isinstance(words[1], bytes) else None
                )
                if words[0].upper() == b"[UIDVALIDITY":
                    found.uidvalidity = value or None
                elif words[0].upper() == b"[UIDNEXT":
                    found.uidnext = value or None
                elif words[0].upper() == b"[HIGHESTMODSEQ":
                    found.modseq = value or None
        return found

    def highest(self) -> int:
        """The highest UID of the open folder, 0 when it is empty."""
        return max((a.uid or 0 for a in self._fetch(b"UID FETCH * (UID)")), default=0)

    def uids(self, first: int, last: int | None) -> list[int]:
        """The UIDs from ``first`` to ``last`` that the server lists, ascending.

        Parameters:
          last: ``None`` means the highest. Answers outside the range are dropped: ``n:*`` also
            gives the last message when it is below ``n`` (RFC 9051, 9, seq-range).
        """
        return sorted(self._paged(b"(UID)", first, last))

    def compact_uids(self, first: int, last: int) -> list[int]:
        """The same in one short line, from servers that support ``ESEARCH`` (RFC 4731)."""
        found: list[int] = []
        for name, words in self._untagged(b"UID SEARCH RETURN (ALL) UID %d:%d" % (first, last)):
            if name == b"ESEARCH":
                found += responses.searched(words, last)
            if len(found) > responses.UIDS_LIMIT:
                raise ImapError(Fault.PROTOCOL, "too many ESEARCH answers")
        return sorted({uid for uid in found if first <= uid <= last})

    def flags_of(
        self, first: int, last: int, since: int | None = None
    ) -> tuple[dict[int, Fetched], list[tuple[int, int]]]:
        """The flags of a range's messages, by UID, and ranges of UIDs that are said to be gone.

        Parameters:
          since: only of those that changed after this mod-sequence (RFC 7162 3.1.4.1).
        """
        self._vanished = []
        items = b"(UID " + b" ".join(self._flag_items()) + b")"
        if since is not None:
            gone = b" VANISHED" if b"QRESYNC" in self._enabled else b""
            items += b" (CHANGEDSINCE %d%b)" % (since, gone)
        return self._paged(items, first, last), self._vanished

    def listed(self, uids: Sequence[int]) -> set[int]:
        """Which of these messages are there."""
        wanted = set(uids)
        return {
            answer.uid
            for chosen in uid_sets(uids)
            for answer in self._fetch(b"UID FETCH " + chosen + b" (UID)")
            if answer.uid in wanted
        }

    def _flag_items(self) -> list[bytes]:
        return [b"FLAGS", *([b"X-GM-LABELS"] if self.supports("X-GM-EXT-1") else [])]

    def _facts(self, sizes: bool) -> bytes:
        items = [b"UID", b"INTERNALDATE"]
        if sizes:
            items.insert(1, b"RFC822.SIZE")
        if self.flags:
            items += self._flag_items()
        if self.supports("OBJECTID"):
            items.append(b"EMAILID")
        elif self.supports("X-GM-EXT-1"):
            items.append(b"X-GM-MSGID")
        return b"(" + b" ".join(items) + b")"

    def scan(self, first: int, last: int | None, *, sizes: bool = True) -> list[Fetched]:
        """UID, size, arrival and content's name of the messages of a range, in UID order.

        Parameters:
          sizes: ``False`` leaves them out, over which some servers break.
        """
        found = self._paged(self._facts(sizes), first, last)
        return [found[uid] for uid in sorted(found)]

    def scan_set(self, uids: Sequence[int], *, sizes: bool = True) -> list[Fetched]:
        """The same of these messages; those that the server leaves out are absent."""
        wanted = set(uids)
        found: dict[int, Fetched] = {}
        for chosen in uid_sets(uids):
            for answer in self._fetch(b"UID FETCH " + chosen + b" " + self._facts(sizes)):
                if answer.uid in wanted:
                    _merge(found, answer)
        return [found[uid] for uid in sorted(found)]

    def _paged(self, items: bytes, first: int, last: int | None) -> dict[int, Fetched]:
        """FETCH a range, also from servers that answer for so many messages at once only.

        MESSAGELIMIT (RFC 9738) says that an answer was cut; what is left lies below or above it.
        """
        found: dict[int, Fetched] = {}
        ranges = [(first, last)]
        while ranges:
            low, high = ranges.pop()
            end = b"*" if high is None else str(high).encode()
            got: dict[int, Fetched] = {}
            for answer in self._fetch(b"UID FETCH %d:%s " % (low, end) + items):
                if answer.uid and answer.uid >= low and (high is None or answer.uid <= high):
                    _merge(got, answer)
            found |= got
            if got and b"[MESSAGELIMIT" in self._completion.upper():
                below, above = min(got) - 1, max(got) + 1
                if below >= low:
                    ranges.append((low, below))
                if high is None or above <= high:
                    ranges.append((above, high))
        return found

    def bodies(self, uids: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Whole messages, as they come; a UID that the server leaves out is left out here.

        Answers may be spread over several lines, doubled, or belong to other messages
        (RFC 9051, 7.5.2): only the first body of a UID that was asked for counts.
        """
        wanted = set(uids)
        limit = self._settings.part_bytes * WHOLE_FACTOR
        for chosen in uid_sets(uids):
            for answer in self._fetch(b"UID FETCH " + chosen + b" (UID BODY.PEEK[])", limit):
                if answer.uid in wanted and answer.body is not None:
                    wanted.discard(answer.uid)
                    yield answer.uid, answer.body

    def headers(self, uids: Sequence[int]) -> dict[int, bytes]:
        """The header sections of these messages, each with the empty line that ends it."""
        wanted = set(uids)
        found: dict[int, bytes] = {}
        for chosen in uid_sets(uids):
            line = b"UID FETCH " + chosen + b" (UID BODY.PEEK[HEADER])"
            for answer in self._fetch(line, self._settings.part_bytes):
                if answer.uid in wanted and answer.body is not None:
                    found.setdefault(answer.uid, answer.body)
        return found

    def part(self, uid: int, offset: int, size: int) -> Part | None:
        """Up to ``size`` bytes of a message from ``offset``; ``None`` when the server sends none.

        Raises:
          ImapError: ``PROTOCOL`` when the server answers with another part than was asked for.
        """
        line = b"UID FETCH %d (UID BODY.PEEK[]<%d.%d>)" % (uid, offset, size)
        found: Part | None = None
        for answer in self._fetch(line, min(WHOLE_BYTES, self._settings.max_message_bytes)):
            if answer.uid != uid or answer.body is None or found is not None:
                continue
            whole = answer.origin is None and offset == 0
            if not whole and (answer.origin != offset or len(answer.body) > size):
                raise ImapError(
                    Fault.PROTOCOL, "the server ignores which part of a message is asked"
                )
            # Without an origin it is the whole message, as servers answer that know no parts.
            found = Part(answer.body, whole or len(answer.body) < size)
        return found

    def log_out(self) -> None:
        """Say good-bye without waiting for the answer."""
        with suppress(ImapError):
            self._send(b"LOGOUT")

    def _fetch(self, line: bytes, limit: int = 0) -> Iterator[Fetched]:
        for name, words in self._untagged(line, limit):
            if name == b"VANISHED":
                self._vanished += responses.vanished(words)
            if not name.isdigit() or len(words) < 2 or not isinstance(words[1], list):
                continue
            kind = words[0].upper() if isinstance(words[0], bytes) else b""
            if kind == b"FETCH":
                yield responses.fetch(words[1])
            elif kind == b"UIDFETCH":  # RFC 9586: the number is the UID
                answer = responses.fetch(words[1])
                answer.uid = responses.number(name)
                yield answer

    def _untagged(self, line: bytes, limit: int = 0) -> Iterator[tuple[bytes, list[Any]]]:
        tag = self._send(line)
        try:
            yield from self._answers(tag, limit)
        except _Refused as refused:
            raise refusal(refused.text, Fault.REFUSED) from None

    def _send(self, line: bytes) -> bytes:
        tag: bytes = self._connection._new_tag()  # type: ignore[attr-defined]
        self._connection.send(tag + b" " + line + b"\r\n")
        return tag

    def _answers(self, tag: bytes, limit: int = 0) -> Iterator[tuple[bytes, list[Any]]]:
        """The untagged answers up to the command's end, as (first word, other words).

        Parameters:
          limit: bytes of one literal; 0 when no body was asked for.

        Raises:
          _Refused: the command ended with NO or BAD.
        """
        seen = 0
        for _ in range(ANSWER_LINES):
            pieces = self._response(limit or ANSWER_BYTES)
            head = pieces[0]
            assert isinstance(head, bytes)
            seen += _size(pieces)
            if not limit and seen > ANSWER_BYTES:
                break
            if head.startswith(b"* "):
                first, _, rest = head[2:].strip().partition(b" ")
                word = first.upper()
                if word == b"BYE":
                    error = refusal(self._words(rest), Fault.CONNECTION_LOST)
                    error.ended = True
                    raise error
                if word == b"ENABLED":
                    self._enabled.update(rest.upper().split()[:20])
                elif word in (b"OK", b"NO", b"BAD"):
                    yield word, rest.split(b" ")
                else:
                    yield word, responses.tokens([rest, *pieces[1:]])
            elif head[: len(tag) + 1].upper() == tag.upper() + b" ":
                verdict, _, text = head[len(tag) :].strip().partition(b" ")
                if verdict.upper() != b"OK":
                    raise _Refused(self._words(text))
                self._completion = text
                return
        raise ImapError(Fault.PROTOCOL, "the answer to one command does not end")

    def _words(self, text: bytes) -> str:
        """What a server says, without the login's secret: some echo what they were told."""
        return scrubbed(text[:WORDS].decode("utf-8", "replace"), self._imap.secret)

    def _response(self, limit: int) -> list[bytes | Literal]:
        """One whole response: text and the literals in it, which together have ``limit`` bytes."""
        wire = self._connection.wire
        pieces: list[bytes | Literal] = []
        for _ in range(RESPONSE_LINES):
            line = wire.readline(NEXT_LINE if pieces else LINE_LIMIT)
            if pieces and not line.strip() and responses.unclosed(pieces):
                continue  # some servers put an empty line after a literal (python/cpython#88574)
            literal = LITERAL.search(line)
            pieces.append(line[: literal.start()] if literal else line)
            if not literal:
                return pieces
            size = int(literal[1])
            limit -= size
            if limit < 0:
                raise ImapError(Fault.PROTOCOL, f"the server announces {size} bytes of text")
            pieces.append(Literal(wire.read(size)))
        raise ImapError(Fault.PROTOCOL, "an answer comes in too many pieces")


def _size(pieces: Sequence[bytes | Literal]) -> int:
    return sum(len(one.data if isinstance(one, Literal) else one) for one in pieces)


class _Refused(Exception):
    """A command that ended with NO or BAD."""

    def __init__(self, text: str) -> None:
        self.text = text


def quote(name: bytes) -> bytes:
    """A folder name as an IMAP quoted string.

    Raises:
      ImapError: the name holds CR, LF or NUL, which would end the command.
    """
    if any(byte in name for byte in (b"\r", b"\n", b"\0")):
        raise ImapError(Fault.PROTOCOL, "a folder's name holds a line end")
    return b'"' + name.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def uid_set(uids: Sequence[int]) -> bytes:
    """UIDs as an ascending set with ranges: ``1:3,7``."""
    ranges: list[list[int]] = []
    for uid in sorted(uids):
        if ranges and uid == ranges[-1][1] + 1:
            ranges[-1][1] = uid
        else:
            ranges.append([uid, uid])
    return ",".join(str(a) if a == b else f"{a}:{b}" for a, b in ranges).encode()


def uid_sets(uids: Sequence[int]) -> Iterator[bytes]:
    """The same as sets of at most ``SET_LENGTH`` bytes each."""
    ranges: list[bytes] = []
    length = 0
    for one in uid_set(uids).split(b","):
        if ranges and length + len(one) + 1 > SET_LENGTH:
            yield b",".join(ranges)
            ranges, length = [], 0
        ranges.append(one)
        length += len(one) + 1
    if uids:
        yield b",".join(ranges)
