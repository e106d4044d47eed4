"""Connections that end, stall or trickle at any point."""

import socket
import time

import pytest

from mailpoll.imap import Fault, ImapError, wire
from tests.integration.scripted import add, expect, polled, stored, try_again_now
from tests.integration.system import System, message
from tests.servers.scripted_imap import CLOSE, HANG, Rule, ScriptedImap, pause

BYE = b"* BYE Internal error occurred\r\n" + CLOSE
FETCHES = ["UID FETCH .*INTERNALDATE", "UID FETCH .*BODY"]
COMMANDS = ["CAPABILITY", "LOGIN", "LIST", "STATUS", "EXAMINE", *FETCHES]
KINDS = {"connection_lost", "timed_out", "unavailable", "protocol_error"}


def mail(count: int) -> dict[int, bytes]:
    return {uid: message(f"number {uid}") for uid in range(1, count + 1)}


@pytest.mark.parametrize("ending", [BYE, CLOSE, HANG], ids=["bye", "closed", "silent"])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_end_at_any_command_loses_nothing(scripted: System, command: str, ending: bytes) -> None:
    # Given a server that ends each connection at this command for a while
    with ScriptedImap(messages=mail(3), rules=[Rule(command, ending)]) as server:
        account = polled(add(server))
        assert account.last_error_kind in KINDS
        assert account.state == "active"
        assert account.next_poll_at > account.last_error_at
        assert stored() == []
        # When it recovers
        server.rules = []
        try_again_now()
        account = polled(account)
        # Then all is there
        expect(server)
        assert account.last_error is None


@pytest.mark.parametrize("greeting", [BYE, CLOSE, HANG, b"hello\r\n", b"* OK \xff\xfe\r\n" + CLOSE])
def test_a_greeting_that_is_none_ends_in_words(scripted: System, greeting: bytes) -> None:
    with ScriptedImap(messages=mail(1), greeting=greeting) as server:
        account = polled(add(server))
        assert account.last_error_kind in KINDS
        server.greeting = b"* OK ready\r\n"
        polled(account)
        expect(server)


def test_a_server_that_greets_without_asking_for_a_login_is_polled(scripted: System) -> None:
    with ScriptedImap(messages=mail(2), greeting=b"* PREAUTH welcome\r\n") as server:
        polled(add(server))
        expect(server)
    assert not any(command.startswith("LOGIN") for command in server.commands)


def test_a_server_that_breaks_every_second_connection_is_read_to_its_end(scripted: System) -> None:
    with ScriptedImap(messages=mail(40)) as server:
        first_half = server.answer("UID FETCH 1:40 (UID BODY.PEEK[])")

        def cut() -> bytes:
            return first_half[: len(first_half) // 2] + CLOSE

        server.rules = [Rule("UID FETCH .*BODY", cut, times=1)]
        account = polled(add(server))
        expect(server)
    assert account.last_error is None


def test_a_byte_now_and_then_ends_at_the_total_time(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mailpoll.settings import settings

    # Given a poll that may take ten seconds, and a server that sends a byte five times a second
    monkeypatch.setenv("MAILPOLL_POLL_DEADLINE", "10")
    settings.cache_clear()
    trickle = b"".join(b"x" + pause(200) for _ in range(600))
    with ScriptedImap(messages=mail(1), rules=[Rule("LIST", b"* LIST " + trickle)]) as server:
        account = polled(add(server))
    settings.cache_clear()
    assert account.last_error_kind == "timed_out"


def test_less_than_a_minimum_of_bytes_in_a_while_counts_as_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "MINIMUM_SECONDS", 0.2)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = wire.Wire(ours, 10, time.monotonic() + 60)
        with pytest.raises(ImapError) as caught:
            while True:
                theirs.sendall(b"x\r\n")
                time.sleep(0.05)
                reader.readline()
    assert caught.value.fault is Fault.TIMED_OUT
    assert "bytes in" in caught.value.detail
