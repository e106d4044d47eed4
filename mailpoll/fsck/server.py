"""An account's server: its live lists against the database, and bytes fetched again."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from .. import database, logins
from ..imap import Fault, Fetched, ImapError, Session, Status, connect, selectable
from ..models import AccountState, EmailAccount, EmailFolder, EmailLocation, EmailRawMessage
from ..settings import settings
from ..sync import proof
from ..sync.download import Body, Broken, Downloader, batches
from ..sync.ledger import wire
from .findings import Difference, Kind, Tally
from .rows import ASKED, PAGE, ask

#: Seconds that one conversation with a server may take.
CONVERSATION = 6 * 3_600


class Mailbox:
    """The server of an account: connected to when first needed, and again after it broke.

    Parameters:
      account: not one whose logins are refused: providers lock accounts that go on trying.
    """

    def __init__(self, account: EmailAccount) -> None:
        self.account = account
        self._connection = ExitStack()
        self._session: Session | None = None
        self._opened: tuple[int, Status] | None = None
        self._refused: ImapError | None = None

    def refusal(self) -> str:
        """Why the server is not to be asked, in words; empty when it is."""
        if self.account.archive:
            return "the account has no server"
        refused = self.account.state == AccountState.AUTH_FAILED
        return "its login is refused, and not tried again" if refused else ""

    @property
    def session(self) -> Session:
        if self._refused is not None:
            raise self._refused  # one failed login is enough: more could lock the account
        if self._session is None:
            try:
                login = logins.login_of(self.account)
                self._session = self._connection.enter_context(
                    connect(login, settings(), CONVERSATION)
                )
            except ImapError as error:
                self._refused = error
                raise
        return self._session

    def close(self) -> None:
        """End the conversation, if there is one."""
        self._connection.close()
        self._session = self._opened = None

    def examine(self, folder: EmailFolder) -> Status:
        """Open a folder, and learn what it has now."""
        session, self._opened = self.session, None
        self._opened = (folder.id, session.examine(wire(folder)))
        return self._opened[1]

    def _open(self, folder: EmailFolder) -> Status:
        """The same, unless it is the one that is open."""
        if self._opened is not None and self._opened[0] == folder.id:
            return self._opened[1]
        return self.examine(folder)

    def fetch(self, folder: EmailFolder, uid: int, size: int | None) -> Body | None:
        """One message's bytes; ``None`` when the server does not send them, or not any more.

        Raises:
          ImapError: the server cannot be asked.
        """
        if self._open(folder).uidvalidity != folder.uidvalidity:
            return None
        bodies = self._download([Fetched(uid=uid, size=size)])
        return bodies[0] if bodies else None

    def _download(self, entries: Sequence[Fetched]) -> list[Body]:
        downloader = Downloader(self.session, settings(), self.account.uuid)
        try:
            return downloader.fetch(entries).bodies
        except Broken as broken:
            for body in broken.batch.bodies:
                discard(body)
            raise broken.error from None

    def digests(
        self, folder: EmailFolder, places: Sequence[tuple[int, int | None]]
    ) -> dict[int, str]:
        """UID to SHA-256 of what the server sends now, of (UID, size)."""
        self._open(folder)
        found: dict[int, str] = {}
        entries = [Fetched(uid=uid, size=size) for uid, size in places]
        for batch in batches(entries, settings()):
            for body in self._download(batch):
                found[body.uid] = body.sha256
                discard(body)
        return found


def discard(body: Body) -> None:
    """Remove the file of a large message."""
    if isinstance(body.source, Path):
        body.source.unlink(missing_ok=True)


def compare(mailbox: Mailbox, tally: Tally, *, contents: bool) -> Iterator[Difference]:
    """What the server lists against what is written down, folder by folder.

    Parameters:
      contents: fetch every message again and compare its bytes too.

    Raises:
      ImapError: the server cannot be asked.
    """
    account = mailbox.account
    chosen = account.folders
    listed = selectable(*mailbox.session.list_folders())
    wanted = {one.wire_name for one in listed if chosen is None or one.name in chosen}
    with database.connected():
        found = list(EmailFolder.select().where(EmailFolder.account == account))
    rows = [row for row in found if not row.archived]
    for row in rows:
        if row.gone_at is None and wire(row) not in {one.wire_name for one in listed}:
            yield Difference(
                Kind.FOLDER_GONE, account, row.name, mend=lambda held: ask(held, ASKED)
            )
        elif wire(row) in wanted and row.high is not None:
            tally.folders += 1
            try:
                yield from _compare(mailbox, row, tally, contents=contents)
            except ImapError as error:
                if error.fault is not Fault.REFUSED:
                    raise
                tally.unchecked.append(f"{account.address} {row.name}: {error}")
    known = {wire(row) for row in rows if row.high is not None}
    for name in wanted - known:
        status = mailbox.session.statuses([name]).get(name)
        tally.newer += (status and status.messages) or 0


def _compare(
    mailbox: Mailbox, folder: EmailFolder, tally: Tally, *, contents: bool
) -> Iterator[Difference]:
    account, session = mailbox.account, mailbox.session
    tally.now = f"{account.address} {folder.name}: the server's list"
    seen = mailbox.examine(folder)
    if seen.uidvalidity and seen.uidvalidity != folder.uidvalidity:
        yield _of(folder, account, Kind.RENUMBERED, 0)
        return
    top = max((seen.uidnext or 1) - 1, folder.high, session.highest())
    short = session.supports("ESEARCH")
    lister = session.compact_uids if short else session.uids
    found = proof.compare(folder, top, seen.messages or 0, lister)
    if seen.messages is not None and found.listed != seen.messages:
        # As polls do: the answer may be cut, or mail may be leaving just now.
        seen = mailbox.examine(folder)
        found = proof.compare(folder, top, seen.messages or 0, session.uids)
    with database.connected():
        now = EmailFolder.get_or_none(EmailFolder.id == folder.id)
    if now is None or (now.uidvalidity, now.generation) != (folder.uidvalidity, folder.generation):
        tally.unchecked.append(f"{account.address} {folder.name}: it changed meanwhile")
        return
    # What is above the window has come since the last poll, and the next one brings it.
    missing = [uid for uid in found.missing if uid <= folder.high]
    withheld = max(0, (seen.messages or 0) - found.listed)
    tally.newer += len(found.missing) - len(missing)
    tally.withheld += withheld
    tally.to_import += _below(session, folder)
    # What a server withholds may only seem to have left.
    absent = [] if withheld else found.absent
    for kind, uids in (
        (Kind.MISSING, missing),
        (Kind.ABSENT, absent),
        (Kind.RETURNED, found.returned),
    ):
        for uid in uids:
            yield _of(folder, account, kind, uid)
    if contents:
        yield from _compare_contents(mailbox, folder, tally)


def _of(folder: EmailFolder, account: EmailAccount, kind: Kind, uid: int) -> Difference:
    return Difference(kind, account, folder.name, uid or None, mend=lambda held: ask(held, ASKED))


def _below(session: Session, folder: EmailFolder) -> int:
    """Messages that the import has not reached."""
    return 0 if folder.imported else len(session.uids(1, folder.low - 1))


def _compare_contents(mailbox: Mailbox, folder: EmailFolder, tally: Tally) -> Iterator[Difference]:
    place, last = EmailLocation, 0
    while True:
        with database.connected():
            query = (
                place.select(place.uid, place.server_size, EmailRawMessage.sha256)
                .join(EmailRawMessage)
                .where(
                    place.folder == folder.id,
                    place.uidvalidity == folder.uidvalidity,
                    place.generation == folder.generation,
                    place.expunged_at.is_null(),
                    place.uid > last,
                )
                .order_by(place.uid)
                .limit(PAGE)
            )
            page = list(query.tuples())
        digests = mailbox.digests(folder, [(uid, size) for uid, size, _ in page])
        for uid, _, sha256 in page:
            tally.now = f"{mailbox.account.address} {folder.name}: UID {uid}"
            if digests.get(uid, sha256) != sha256:
                yield Difference(
                    Kind.CHANGED,
                    mailbox.account,
                    folder.name,
                    uid,
                    detail=f"SHA-256 {digests[uid]}",
                    reason="what was stored first stays",
                )
        if len(page) < PAGE:
            return
        last = page[-1][0]
