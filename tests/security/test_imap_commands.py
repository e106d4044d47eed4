"""Nobody but mailpoll decides which commands it sends: not the API's users, mail, nor servers."""

import re
import socket

import pytest

from tests.integration.scripted import add, polled, stored
from tests.integration.system import System, message
from tests.servers.process import HOST
from tests.servers.scripted_imap import Mailbox, Rule, ScriptedImap

#: Every command that mailpoll ever sends, with what may stand in it.
NAME = r'"(?:[^"\\\r\n\0]|\\["\\])*"'
SET = r"[0-9:,*]+"
COMMANDS = re.compile(
    rf"CAPABILITY|LOGIN {NAME} {NAME}|LOGOUT|ID \([^)\r\n]*\)"
    rf'|LIST "" "\*"(?: RETURN \(STATUS \([A-Z ]+\)\))?|STATUS {NAME} \([A-Z ]+\)|EXAMINE {NAME}'
    rf"|UID FETCH {SET} \([A-Z0-9. -]+(?:BODY\.PEEK\[(?:HEADER)?\](?:<\d+\.\d+>)?)?\)"
    rf"|UID SEARCH RETURN \(ALL\) UID {SET}"
)
#: Ends of a command, which a fold, an encoding or a quote may hide.
INJECTED = ("\r\nX9 NOOP", "\nX9 NOOP", "\rX9 NOOP", '"\r\nX9 NOOP', "\0")


@pytest.mark.parametrize("field", ["username", "password"])
@pytest.mark.parametrize("tail", INJECTED)
def test_a_login_cannot_hold_a_second_command(scripted: System, field: str, tail: str) -> None:
    """S01: past the API, which refuses it, the connection refuses it too."""
    with ScriptedImap() as server:
        answer = scripted.api.simulate_post(
            "/admin/email-accounts",
            json={"address": "a@b.example", "password": "x", field: "u" + tail},
        )
        assert answer.status_code == 422
        assert [error["field"] for error in answer.json["errors"]] == [field]
        account = polled(
            add(server, **{field: "u" + tail}) if field == "username" else server_with(server, tail)
        )
    assert "control characters" in account.last_error
    assert server.commands == []


def server_with(server: ScriptedImap, tail: str):
    """An account whose stored password holds the end of a command."""
    from mailpoll import database, logins, runtime

    account = add(server)
    sealed = runtime.keyring().encrypt("u" + tail, logins.credential_context(account.uuid))
    with database.transaction():
        type(account).update(credential=sealed).where(type(account).id == account.id).execute()
    return account


HOSTILE = [
    "<1@x>\r\n X9 EXPUNGE",
    '"\r\n X9 DELETE INBOX',
    "=?utf-8?q?=0D=0AX9_EXPUNGE?=",
    "{5}\r\n X9 STORE 1 +FLAGS (\\Deleted)",
]


def test_no_data_of_mail_gets_into_a_command(scripted: System) -> None:
    """S03: everything that goes out is one of few commands, and nothing of the mail is in it."""
    mail = {
        uid: message(f"canary {value}", Message_ID=value, In_Reply_To=value, References=value)
        for uid, value in enumerate(HOSTILE, 1)
    }
    with ScriptedImap(messages=mail, capabilities=b"IMAP4rev1 ESEARCH ID OBJECTID") as server:
        server.folders[b'quote" and \\'] = Mailbox(dict(mail))
        account = polled(add(server))
        scripted.work_until(
            lambda: all(m["status"] == "processed" for m in scripted.messages(account.uuid))
        )
        server.uidvalidity = 2  # looks for the same contents again
        polled(account)
    assert len(stored()) == len(mail)
    assert server.commands
    for command in server.commands:
        assert COMMANDS.fullmatch(command), command
        assert "X9" not in command
        assert "canary" not in command


@pytest.mark.parametrize("command", ["LOGIN", "STATUS", "EXAMINE", "UID FETCH"])
def test_a_referral_is_not_followed(scripted: System, command: str) -> None:
    """S11: ``[REFERRAL imap://…]`` (RFC 2221) names a server that nobody asked for."""
    with socket.create_server((HOST, 0)) as elsewhere:
        port = elsewhere.getsockname()[1]
        refusal = b"{tag} NO [REFERRAL imap://u;AUTH=*@127.0.0.1:%d/] go there\r\n" % port
        with ScriptedImap({1: message("x")}, rules=[Rule(command, refusal)]) as server:
            polled(add(server))
        assert any(sent.startswith(command) for sent in server.commands)
        elsewhere.setblocking(False)
        with pytest.raises(BlockingIOError):
            elsewhere.accept()
