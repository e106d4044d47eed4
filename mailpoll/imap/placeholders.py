"""Texts that a server sends in place of a message that it cannot read itself."""

import re

#: Exchange 2010 and later (OfflineIMAP/offlineimap#62).
PLACEHOLDER = re.compile(
    r"Retrieval using the IMAP4 protocol failed for the following message: \d+", re.IGNORECASE
)


def is_placeholder(subject: str) -> bool:
    """Whether a message with this subject is the server's own complaint about another one."""
    return PLACEHOLDER.fullmatch(subject.strip()) is not None
