"""What can go wrong with an IMAP server, in kinds that an operator understands."""

import re
from enum import StrEnum


class Fault(StrEnum):
    """The kind of a failure; it decides what happens to the account and when it is tried again."""

    AUTH_FAILED = "auth_failed"
    BLOCKED_HOST = "blocked_host"
    UNREACHABLE = "unreachable"
    TLS = "tls_error"
    TIMED_OUT = "timed_out"
    CONNECTION_LOST = "connection_lost"
    THROTTLED = "throttled"
    UNAVAILABLE = "unavailable"
    REFUSED = "refused"
    PROTOCOL = "protocol_error"


#: What each kind means, in plain words, for the API, the command line and the log.
MEANING = {
    Fault.AUTH_FAILED: "the server refused the user name or password",
    Fault.BLOCKED_HOST: "the host is not one that mailpoll may connect to",
    Fault.UNREACHABLE: "no connection to the server",
    Fault.TLS: "no secure connection to the server",
    Fault.TIMED_OUT: "the server did not answer in time",
    Fault.CONNECTION_LOST: "the server closed the connection",
    Fault.THROTTLED: "the server limits logins, connections or traffic",
    Fault.UNAVAILABLE: "the server is temporarily unavailable",
    Fault.REFUSED: "the server refused a command",
    Fault.PROTOCOL: "the server's answer is not valid IMAP",
}

THROTTLE = re.compile(
    r"\[(LIMIT|OVERQUOTA)\]|too many|throttled|rate limit|frequency limited|bandwidth limit"
    r"|simultaneous connections|not connected",
    re.IGNORECASE,
)
UNAVAILABLE = re.compile(
    r"\[(UNAVAILABLE|INUSE|SERVERBUG|CONTACTADMIN)\]|temporar|try again|internal error",
    re.IGNORECASE,
)
#: Microsoft 365 says for how long (milliseconds).
BACKOFF = re.compile(r"Backoff Time: (\d+) ?millisec", re.IGNORECASE)


class ImapError(Exception):
    """A failed conversation with a server.

    Parameters:
      fault: its kind.
      detail: the server's words or the operating system's, without secrets.
      retry_after: seconds to wait that the server asked for, if it did.
    """

    #: The server said BYE: whatever its words, nothing more can be asked on this connection.
    ended = False

    def __init__(self, fault: Fault, detail: str, retry_after: float | None = None) -> None:
        self.fault = fault
        self.detail = printable(detail)
        self.retry_after = retry_after
        super().__init__(f"{MEANING[fault]}: {self.detail}" if self.detail else MEANING[fault])


def refusal(text: str, otherwise: Fault) -> ImapError:
    """Classify a server's NO, BAD or BYE by its words.

    Response codes are those of RFC 5530 and RFC 9051; the free texts are those of Gmail,
    Microsoft 365, QQ and 163 as their users report them.
    """
    if text.startswith(("b'", 'b"')):  # imaplib puts the server's bytes into its errors with repr
        text = text[2:-1]
    backoff = BACKOFF.search(text)
    if backoff:
        return ImapError(Fault.THROTTLED, text, min(int(backoff[1]) / 1_000, 3_600))
    if THROTTLE.search(text):
        return ImapError(Fault.THROTTLED, text)
    if UNAVAILABLE.search(text):
        return ImapError(Fault.UNAVAILABLE, text)
    return ImapError(otherwise, text)


def printable(text: str, limit: int = 300) -> str:
    """One line without control characters, short enough for a log or a column."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
