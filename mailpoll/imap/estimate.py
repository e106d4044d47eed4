"""How much a mailbox holds, from as few questions as the server allows."""

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import Fault, ImapError
from .folders import Folder
from .session import Session

#: Messages of the largest folder whose sizes stand for all others.
SAMPLE = 200


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an import has before it.

    Parameters:
      bytes: of all messages; from a sample where ``exact`` is false.
    """

    messages: int
    bytes: int
    exact: bool


def estimate(session: Session, folders: Sequence[Folder]) -> Estimate:
    """Count messages and bytes of these folders.

    Servers with STATUS=SIZE (RFC 8438) tell both; elsewhere the newest messages of the largest
    folder are looked at.
    """
    names = [folder.wire_name for folder in folders]
    exact = session.supports("STATUS=SIZE")
    statuses = session.statuses(names, sizes=exact)
    counts = {name: status.messages or 0 for name, status in statuses.items()}
    messages = sum(counts.values())
    if exact:
        sizes = (status.bytes or 0 for status in statuses.values())
        return Estimate(messages, sum(sizes), exact=True)
    mean = _mean_size(session, max(counts, key=lambda name: counts[name])) if messages else 0
    return Estimate(messages, int(mean * messages), exact=not messages)


def _mean_size(session: Session, name: bytes) -> float:
    try:
        session.examine(name)
        highest = session.highest()
        sizes = [entry.size or 0 for entry in session.scan(max(1, highest - SAMPLE + 1), highest)]
    except ImapError as error:
        if error.fault is not Fault.REFUSED:
            raise
        return 0.0
    return sum(sizes) / len(sizes) if sizes else 0.0
