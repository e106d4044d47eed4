"""Providers as their users met them: what each answers, line for line, on the scripted server.

Sources are issue reports that quote the lines: see the pages named beside each persona.
"""

import base64
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.servers.scripted_imap import CLOSE, Connection, Rule, ScriptedImap

QQ_LINE = (
    b"{tag} NO Login fail. Account is abnormal, service is not open, password is incorrect, "
    b"login frequency limited, or system is busy. More information at "
    b"https://help.mail.qq.com/detail/108/1023\r\n"
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A provider that refuses, and what mailpoll makes of it.

    Parameters:
      make: a server that refuses like this.
      kind: of the failure.
      pause: seconds until the next poll, least and most, with an interval of a minute; ``None``
        is the rest of the day.
      counts: it counts as a failure of the account.
      blames_login: it counts as a refused login, of which three are the most.
      words: what the operator must read.
      preset: the IMAP host of the provider whose preset applies.
    """

    make: Callable[[], ScriptedImap]
    kind: str
    pause: tuple[float, float] | None
    words: str
    counts: bool = True
    blames_login: bool = False
    preset: str | None = None


def login_answers(line: bytes, **fields: object) -> Callable[[], ScriptedImap]:
    """A server that answers every LOGIN and AUTHENTICATE with a line."""
    return lambda: ScriptedImap(rules=[Rule("LOGIN|AUTHENTICATE", line)], **fields)  # type: ignore[arg-type]


def greets(line: bytes) -> Callable[[], ScriptedImap]:
    return lambda: ScriptedImap(greeting=line, rules=[Rule(".*", CLOSE)])


def answers(pattern: str, line: bytes) -> Callable[[], ScriptedImap]:
    """A server that takes the login and answers commands like ``pattern`` with a line."""
    return lambda: ScriptedImap(messages={1: b"Subject: one\r\n\r\n"}, rules=[Rule(pattern, line)])


def not_connected() -> ScriptedImap:
    """Microsoft 365: the login is accepted, then nothing else is (imapsync#411, MailKit#1494)."""
    server = ScriptedImap()
    line = b"{tag} BAD User is authenticated but not connected.\r\n"

    def capability() -> bytes:
        known = any(command.startswith("LOGIN") for command in server.commands)
        return line if known else server.answer("CAPABILITY")

    bye = line + b"* BYE Connection closed. 14\r\n" + CLOSE
    server.rules = [Rule("CAPABILITY", capability), Rule("ID|LIST|EXAMINE", bye)]
    return server


def netease(offers_id: bool = True) -> ScriptedImap:
    """163, 126 and yeah.net: no folder opens before ID came after the login (imapclient#544)."""
    server = ScriptedImap(
        messages={1: b"Subject: one\r\n\r\n"},
        capabilities=b"IMAP4rev1 ID" if offers_id else b"IMAP4rev1",
    )

    def examine() -> bytes:
        verbs = [command.split()[0].upper() for command in server.commands]
        if "ID" in verbs[verbs.index("LOGIN") :]:
            return server.answer("EXAMINE INBOX")
        return b"{tag} NO EXAMINE Unsafe Login. Please contact kefu@188.com for help\r\n"

    server.rules = [Rule("EXAMINE|SELECT", examine)]
    return server


def distrustful_netease() -> ScriptedImap:
    """163 that dislikes the form of ID, or the place of the login."""
    line = b"{tag} NO EXAMINE Unsafe Login. Please contact kefu@188.com for help\r\n"
    return ScriptedImap(
        messages={1: b"Subject: one\r\n\r\n"},
        capabilities=b"IMAP4rev1 ID",
        rules=[Rule("EXAMINE", line)],
    )


def microsoft_backoff() -> ScriptedImap:
    """Microsoft 365 and WorkMail name the pause (imap_tools#135, parsedmarc#179)."""
    line = b"{tag} NO Request is throttled. Suggested Backoff Time: 299910 milliseconds\r\n"
    return ScriptedImap(rules=[Rule("LIST", line)])


MINUTE = (48.0, 72.0)

REFUSALS = {
    "authenticationfailed": Refusal(
        login_answers(b"{tag} NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)\r\n"),
        "auth_failed",
        MINUTE,
        "refused the user name or password",
        blames_login=True,
    ),
    "a plain NO": Refusal(
        login_answers(b"{tag} NO LOGIN failed.\r\n"),
        "auth_failed",
        MINUTE,
        "refused the user name or password: LOGIN failed.",
        blames_login=True,
    ),
    "BAD for a wrong password": Refusal(
        login_answers(b"{tag} BAD invalid login\r\n"),
        "auth_failed",
        MINUTE,
        "refused the user name or password: invalid login",
        blames_login=True,
    ),
    "a wrong password with an invitation to try again": Refusal(
        login_answers(b"{tag} NO Incorrect password, please try again later\r\n"),
        "auth_failed",
        MINUTE,
        "refused the user name or password",
        blames_login=True,
    ),
    "another code inside the text": Refusal(
        login_answers(b"{tag} NO [AUTHENTICATIONFAILED] see [UNAVAILABLE] in the manual\r\n"),
        "auth_failed",
        MINUTE,
        "refused the user name or password",
        blames_login=True,
    ),
    "Gmail without an app password": Refusal(
        login_answers(
            b"{tag} NO [ALERT] Application-specific password required: "
            b"https://support.google.com/accounts/answer/185833 (Failure)\r\n"
        ),
        "app_password_needed",
        MINUTE,
        "make an app password (https://support.google.com/accounts/answer/185833)",
        blames_login=True,
        preset="imap.gmail.com",
    ),
    "Gmail wants a web login": Refusal(
        login_answers(
            b"* NO [WEBALERT https://accounts.google.com/signin/continue] Web login required.\r\n"
            b"{tag} NO [ALERT] Please log in via your web browser: "
            b"https://support.google.com/mail/accounts/answer/78754 (Failure)\r\n"
        ),
        "web_login_required",
        (720.0, 1_080.0),
        "log in with a web browser first",
        blames_login=True,
        preset="imap.gmail.com",
    ),
    "Gmail with IMAP off": Refusal(
        login_answers(
            b"{tag} NO [ALERT] Your account is not enabled for IMAP use. Please visit your account "
            b"settings page and enable your account for IMAP access. (Failure)\r\n"
        ),
        "imap_switched_off",
        MINUTE,
        "IMAP is switched off for this mailbox",
        blames_login=True,
    ),
    "QQ's one text for four causes": Refusal(
        login_answers(QQ_LINE),
        "login_unclear",
        (480.0, 720.0),
        "switch IMAP on in the settings of QQ Mail and use the authorisation code",
        blames_login=True,
        preset="imap.qq.com",
    ),
    "Gmail has too many connections": Refusal(
        login_answers(b"{tag} NO [ALERT] Too many simultaneous connections. (Failure)\r\n"),
        "too_many_connections",
        (96.0, 144.0),
        "too many connections at once",
    ),
    "Dovecot has too many connections": Refusal(
        login_answers(
            b"{tag} NO [UNAVAILABLE] Maximum number of connections from user+IP exceeded "
            b"(mail_max_userip_connections=10)\r\n"
        ),
        "too_many_connections",
        (96.0, 144.0),
        "too many connections at once",
    ),
    "a limit of logins": Refusal(
        login_answers(b"{tag} NO [LIMIT] login frequency limited\r\n"),
        "login_limited",
        (720.0, 1_080.0),
        "limits how often one may log in",
    ),
    "a limit": Refusal(
        login_answers(b"{tag} NO [LIMIT] not now\r\n"),
        "throttled",
        (240.0, 360.0),
        "limits commands or traffic",
    ),
    "unavailable": Refusal(
        login_answers(b"{tag} NO [UNAVAILABLE] Temporary authentication failure.\r\n"),
        "unavailable",
        MINUTE,
        "temporarily unavailable",
    ),
    "in use": Refusal(
        login_answers(b"{tag} NO [INUSE] Mailbox is locked by POP server\r\n"),
        "in_use",
        MINUTE,
        "locked by another program",
    ),
    "Gmail's bandwidth is used up": Refusal(
        login_answers(
            b"{tag} NO [OVERQUOTA] Account exceeded command or bandwidth limits. (Failure)\r\n"
        ),
        "bandwidth_exceeded",
        None,
        "used up its traffic of the day",
        counts=False,
    ),
    "Microsoft is not connected": Refusal(
        not_connected,
        "connected_refused",
        (240.0, 360.0),
        "the password is not to blame",
    ),
    "Microsoft names a pause": Refusal(
        microsoft_backoff,
        "throttled",
        (299.9, 299.92),
        "Suggested Backoff Time: 299910 milliseconds",
        counts=False,
    ),
    "Microsoft names a pause at the login, with BAD": Refusal(
        login_answers(
            b"{tag} BAD Request is throttled. Suggested Backoff Time: 2000 milliseconds\r\n"
        ),
        "throttled",
        (2.0, 2.01),
        "Suggested Backoff Time: 2000 milliseconds",
        counts=False,
    ),
    "a pause of a day is capped at an hour": Refusal(
        answers("EXAMINE", b"{tag} NO Suggested Backoff Time: 86400000 milliseconds\r\n"),
        "throttled",
        (3_600.0, 3_600.01),
        "Suggested Backoff Time",
        counts=False,
    ),
    "163 takes the login for unsafe": Refusal(
        distrustful_netease,
        "unsafe_login",
        (720.0, 1_080.0),
        "authorisation code",
        preset="imap.163.com",
    ),
    "a BYE in place of a greeting": Refusal(
        greets(b"* BYE Server shutting down\r\n"),
        "connection_lost",
        MINUTE,
        "closed the connection: Server shutting down",
    ),
    "a limit in place of a greeting": Refusal(
        greets(b"* BYE Too many connections from your address\r\n"),
        "too_many_connections",
        (96.0, 144.0),
        "too many connections at once",
    ),
    "another protocol": Refusal(
        greets(b"220 mx.example.org ESMTP\r\n"),
        "protocol_error",
        MINUTE,
        "not valid IMAP",
    ),
    "a BYE during the login": Refusal(
        login_answers(b"* BYE [UNAVAILABLE] maintenance\r\n" + CLOSE),
        "unavailable",
        MINUTE,
        "temporarily unavailable: [UNAVAILABLE] maintenance",
    ),
    "a closed connection during the login": Refusal(
        login_answers(CLOSE), "connection_lost", MINUTE, "closed the connection"
    ),
    "a BYE in the middle": Refusal(
        answers("LIST", b"* BYE Session expired, please login again.\r\n" + CLOSE),
        "session_expired",
        MINUTE,
        "its login has expired",
    ),
}


@dataclass(slots=True)
class TokenImap(ScriptedImap):
    """Takes access tokens (XOAUTH2 and OAUTHBEARER) that ``accepts`` says are good.

    ``tokens`` are those that clients came with. A refusal comes as a challenge first, and the NO
    after the client's answer to it, as Google and Microsoft do.
    """

    capabilities: bytes = b"IMAP4rev1 AUTH=XOAUTH2 AUTH=OAUTHBEARER"
    accepts: Callable[[str], bool] = lambda _: True
    refusal: bytes = b"{tag} NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)\r\n"
    tokens: list[str] = field(default_factory=list)
    #: The latest connection's; tests make one at a time.
    _client: Any = None
    _file: Any = None

    def _converse(self, client: socket.socket, file: Any) -> None:
        self._client, self._file = client, file
        # Without zero-argument super: a dataclass with slots is another class than written.
        ScriptedImap._converse(self, client, file)

    def answer(self, command: str, connection: Connection | None = None) -> bytes:
        if command.startswith("AUTHENTICATE"):
            return self._authenticated()
        return ScriptedImap.answer(self, command, connection)

    def _authenticated(self) -> bytes:
        client, file = self._client, self._file
        client.sendall(b"+ \r\n")
        given = base64.b64decode(file.readline())
        token = given.partition(b"auth=Bearer ")[2].partition(b"\x01")[0].decode()
        self.tokens.append(token)
        if self.accepts(token):
            return b"{tag} OK welcome\r\n"
        client.sendall(b"+ " + base64.b64encode(b'{"status":"400"}') + b"\r\n")
        file.readline()
        return self.refusal


#: Seconds after which a connection over the limit counts.
GRACE = 0.2


@dataclass(slots=True)
class LimitedImap(ScriptedImap):
    """Counts connections at once and logins, and remembers whenever a limit was crossed.

    Parameters:
      connections: that it allows at once; one that has just said LOGOUT may overlap a little.
      logins: that it allows while it runs, which is shorter than a minute.
      linger: seconds that a LIST takes, so that connections overlap; longer than ``GRACE``.
    """

    connections: int = 1_000
    logins: int = 1_000
    linger: float = 0.6
    seen_logins: int = 0
    crossed: list[str] = field(default_factory=list)

    def _converse(self, client: socket.socket, file: Any) -> None:
        end = time.monotonic() + GRACE
        while self.open > self.connections:
            if time.monotonic() > end:
                self.crossed.append(f"{self.open} connections")
                break
            time.sleep(0.01)
        # Without zero-argument super: a dataclass with slots is another class than written.
        ScriptedImap._converse(self, client, file)

    def answer(self, command: str, connection: Connection | None = None) -> bytes:
        verb = command.split(maxsplit=1)[0].upper()
        if verb == "LOGIN":
            with self._lock:
                self.seen_logins += 1
                if self.seen_logins > self.logins:
                    self.crossed.append(f"{self.seen_logins} logins")
        if verb == "LIST":
            time.sleep(self.linger)
        return ScriptedImap.answer(self, command, connection)
