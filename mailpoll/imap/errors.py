"""What can go wrong with an IMAP server, in kinds that an operator understands.

A kind decides what happens to the account and when it is tried again; ``TREATMENT`` is the whole
table of that.
"""

import re
import ssl
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """The kind of a failure, as ``last_error_kind`` of the API shows it."""

    AUTH_FAILED = "auth_failed"
    APP_PASSWORD_NEEDED = "app_password_needed"  # noqa: S105 - a kind, not a password
    WEB_LOGIN_REQUIRED = "web_login_required"
    IMAP_SWITCHED_OFF = "imap_switched_off"
    LOGIN_UNCLEAR = "login_unclear"
    AUTHORISATION_ENDED = "authorisation_ended"
    OAUTH_CLIENT_REFUSED = "oauth_client_refused"
    TOKEN_UNAVAILABLE = "token_unavailable"  # noqa: S105 - a kind, not a token
    SESSION_EXPIRED = "session_expired"
    UNSAFE_LOGIN = "unsafe_login"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    LOGIN_LIMITED = "login_limited"
    THROTTLED = "throttled"
    BANDWIDTH_EXCEEDED = "bandwidth_exceeded"
    BUDGET_SPENT = "budget_spent"
    ACCOUNT_FULL = "account_full"
    CONNECTED_REFUSED = "connected_refused"
    IN_USE = "in_use"
    UNAVAILABLE = "unavailable"
    BLOCKED_HOST = "blocked_host"
    UNREACHABLE = "unreachable"
    TLS = "tls_error"
    TIMED_OUT = "timed_out"
    CONNECTION_LOST = "connection_lost"
    REFUSED = "refused"
    PROTOCOL = "protocol_error"


@dataclass(frozen=True, slots=True)
class Treatment:
    """What a kind means and what follows from it.

    Parameters:
      meaning: plain words for the API, the command line and the log.
      pause: seconds until the next try, doubled at each further failure up to an hour; ``None``
        starts from the account's own interval.
      refusals: so many refused logins in a row end the polling, because providers lock accounts
        that go on; 0 means that the login is not to blame.
      rest_of_day: nothing helps before the next day (UTC).
      limit: a limit of the provider, so nobody connects before the pause is over, whoever asks.
    """

    meaning: str
    pause: float | None = None
    refusals: int = 0
    rest_of_day: bool = False
    limit: bool = False


#: Refused logins in a row after which no more are made.
REFUSALS = 3

TREATMENT = {
    Fault.AUTH_FAILED: Treatment("the server refused the user name or password", refusals=REFUSALS),
    Fault.APP_PASSWORD_NEEDED: Treatment(
        "the provider wants an app password instead of the account's own", refusals=REFUSALS
    ),
    Fault.WEB_LOGIN_REQUIRED: Treatment(
        "the provider wants its user to log in with a web browser first",
        pause=900,
        refusals=REFUSALS,
    ),
    Fault.IMAP_SWITCHED_OFF: Treatment(
        "IMAP is switched off for this mailbox at its provider", refusals=REFUSALS
    ),
    Fault.LOGIN_UNCLEAR: Treatment(
        "the provider gives one answer for a wrong password, IMAP switched off, too many logins "
        "and a busy system",
        pause=600,
        refusals=REFUSALS,
    ),
    Fault.AUTHORISATION_ENDED: Treatment(
        "the permission to read this mailbox has ended: authorise mailpoll again and set the new "
        "refresh_token",
        refusals=1,
    ),
    Fault.OAUTH_CLIENT_REFUSED: Treatment(
        "the provider refused mailpoll's OAuth 2 client: check its id and secret in the "
        "MAILPOLL_OAUTH_… variables",
        pause=900,
    ),
    Fault.TOKEN_UNAVAILABLE: Treatment("the OAuth 2 token server gave no access token", pause=60),
    Fault.SESSION_EXPIRED: Treatment("the server ended the session: its login has expired"),
    Fault.UNSAFE_LOGIN: Treatment(
        "the provider takes this client or this place of login for unsafe", pause=900
    ),
    Fault.TOO_MANY_CONNECTIONS: Treatment(
        "the mailbox has too many connections at once, other clients' included",
        pause=120,
        limit=True,
    ),
    Fault.LOGIN_LIMITED: Treatment(
        "the provider limits how often one may log in", pause=900, limit=True
    ),
    Fault.THROTTLED: Treatment("the server limits commands or traffic", pause=300, limit=True),
    Fault.BANDWIDTH_EXCEEDED: Treatment(
        "the mailbox has used up its traffic of the day at the provider",
        rest_of_day=True,
        limit=True,
    ),
    Fault.BUDGET_SPENT: Treatment(
        "as much as may be fetched from this mailbox in a day was fetched", rest_of_day=True
    ),
    Fault.ACCOUNT_FULL: Treatment(
        "as much is stored of this mailbox as MAILPOLL_ACCOUNT_MESSAGES and "
        "MAILPOLL_ACCOUNT_BYTES allow",
        pause=3_600,
    ),
    Fault.CONNECTED_REFUSED: Treatment(
        "the login was accepted but the mailbox cannot be opened now; the password is not to blame",
        pause=300,
    ),
    Fault.IN_USE: Treatment("the mailbox is locked by another program", pause=60),
    Fault.UNAVAILABLE: Treatment("the server is temporarily unavailable"),
    Fault.BLOCKED_HOST: Treatment("the host is not one that mailpoll may connect to"),
    Fault.UNREACHABLE: Treatment("no connection to the server"),
    Fault.TLS: Treatment("no secure connection to the server"),
    Fault.TIMED_OUT: Treatment("the server did not answer in time"),
    Fault.CONNECTION_LOST: Treatment("the server closed the connection"),
    Fault.REFUSED: Treatment("the server refused a command"),
    Fault.PROTOCOL: Treatment("the server's answer is not valid IMAP"),
}

#: Texts that say more than any response code, most specific first. Their sources: Gmail,
#: Microsoft 365, QQ, 163 and Dovecot as their users report them.
TEXTS = (
    (Fault.BANDWIDTH_EXCEEDED, r"bandwidth limit"),
    (Fault.TOO_MANY_CONNECTIONS, r"too many (simultaneous |concurrent |open )?connections"),
    (Fault.TOO_MANY_CONNECTIONS, r"maximum number of connections"),
    (Fault.LOGIN_UNCLEAR, r"account is abnormal.*password is incorrect"),
    (Fault.LOGIN_LIMITED, r"login frequency|too many (failed )?log ?ins?\b|too frequent"),
    (Fault.CONNECTED_REFUSED, r"authenticated but not connected"),
    (Fault.WEB_LOGIN_REQUIRED, r"via your web browser|web ?login required|\[WEBALERT"),
    (Fault.APP_PASSWORD_NEEDED, r"application-specific password|app password|authorized code"),
    (Fault.IMAP_SWITCHED_OFF, r"not enabled for IMAP|IMAP\S* (\w+ )?(is )?(disabled|switched off)"),
    (Fault.UNSAFE_LOGIN, r"unsafe login"),
    (Fault.SESSION_EXPIRED, r"session (has |is )?expired|token\w* (has |is )?expired"),
)
#: Response codes of RFC 5530 and RFC 9051; they count at the start of the text only.
CODES = {
    "AUTHENTICATIONFAILED": Fault.AUTH_FAILED,
    "AUTHORIZATIONFAILED": Fault.AUTH_FAILED,
    "EXPIRED": Fault.AUTH_FAILED,
    "OVERQUOTA": Fault.BANDWIDTH_EXCEEDED,
    "LIMIT": Fault.THROTTLED,
    "INUSE": Fault.IN_USE,
    "UNAVAILABLE": Fault.UNAVAILABLE,
    "SERVERBUG": Fault.UNAVAILABLE,
    "CONTACTADMIN": Fault.UNAVAILABLE,
}
#: Texts without a code that only hint.
HINTS = (
    (Fault.THROTTLED, r"throttled|rate limit|too many"),
    (Fault.UNAVAILABLE, r"temporar|try again|internal (server )?error|system (is )?busy"),
)
CREDENTIALS = re.compile(
    r"(invalid|incorrect|wrong|bad) (user|login|password|credential)"
    r"|password (is )?(incorrect|wrong|error)|(login|authentication) (failed|error)",
    re.IGNORECASE,
)
CODE = re.compile(r"\[([A-Z][A-Z0-9-]*)")
#: Microsoft 365 and Amazon WorkMail say for how long (milliseconds).
BACKOFF = re.compile(r"Backoff Time: (\d+) ?millisec", re.IGNORECASE)
BACKOFF_MAX = 3_600
#: Characters of a server's words that are looked at: some patterns take their square.
WORDS = 1_000
#: How ``imaplib`` wraps a server's words: the repr of bytes, after BAD and BYE inside a sentence.
WRAPPED = re.compile(r"(?:.* command error: \w+ \[)?b(['\"])(.*)\1\]?", re.DOTALL)
PREFIX = re.compile(r"^(command: \w+ => |\* BYE )")


class ImapError(Exception):
    """A failed conversation with a server.

    Parameters:
      fault: its kind.
      detail: the server's words or the operating system's, without secrets.
      retry_after: seconds to wait that the server asked for, if it did.
      greeting: the server refused before it knew who was calling, so it means the whole host.
    """

    #: The server said BYE: whatever its words, nothing more can be asked on this connection.
    ended = False

    def __init__(
        self,
        fault: Fault,
        detail: str,
        retry_after: float | None = None,
        *,
        greeting: bool = False,
    ) -> None:
        self.fault = fault
        self.detail = printable(detail)
        self.retry_after = retry_after
        self.greeting = greeting
        meaning = TREATMENT[fault].meaning
        super().__init__(f"{meaning}: {self.detail}" if self.detail else meaning)


def refusal(text: str, otherwise: Fault, *, greeting: bool = False) -> ImapError:
    """Classify a server's NO, BAD or BYE by its words.

    Parameters:
      otherwise: the kind when the words say nothing special.
    """
    text = text[:WORDS]
    wrapped = WRAPPED.fullmatch(text)
    text = PREFIX.sub("", wrapped[2].removesuffix("\\r\\n") if wrapped else text, count=1)
    backoff = BACKOFF.search(text)
    if backoff:
        seconds = min(int(backoff[1]) / 1_000, BACKOFF_MAX)
        return ImapError(Fault.THROTTLED, text, seconds, greeting=greeting)
    return ImapError(_fault(text, otherwise), text, greeting=greeting)


def _fault(text: str, otherwise: Fault) -> Fault:
    for fault, pattern in TEXTS:
        if re.search(pattern, text, re.IGNORECASE):
            return fault
    code = CODE.match(text)
    if code and code[1] in CODES:
        return CODES[code[1]]
    if otherwise is Fault.AUTH_FAILED and CREDENTIALS.search(text):
        return otherwise
    for fault, pattern in HINTS:
        if re.search(pattern, text, re.IGNORECASE):
            return fault
    return otherwise


def reason_of(error: OSError) -> str:
    """What went wrong with a connection, without Python's file and line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return error.strerror or str(error) or type(error).__name__


def printable(text: str, limit: int = 300) -> str:
    """One line without control characters, short enough for a log or a column."""
    clean = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
