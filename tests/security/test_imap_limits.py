"""Servers that flood: what they can make mailpoll hold, read and compute has an end."""

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mailpoll.imap import Fault, ImapError, Login, connect, responses
from tests.integration.scripted import add, polled, stored, verdicts
from tests.integration.system import System, message
from tests.servers.process import HOST
from tests.servers.scripted_imap import Rule, ScriptedImap

MEGABYTE = 1_000_000


@contextmanager
def in_memory(most: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most, peak


def refused(scripted: System, rule: Rule, capabilities: bytes = b"IMAP4rev1") -> None:
    mail = {1: message("one")}
    with ScriptedImap(mail, rules=[rule], capabilities=capabilities) as server:
        account = polled(add(server))
    assert account.last_error_kind == "protocol_error", account.last_error
    assert account.state == "active"
    assert stored() == []


def withheld(answer: bytes) -> None:
    """The answer to the question for a message is refused: the message waits."""
    rules = [Rule("UID FETCH .*BODY", answer)]
    with ScriptedImap({1: message("one")}, rules=rules) as server:
        polled(add(server))
    assert verdicts() == {1: "waiting"}
    assert stored() == []


@pytest.mark.parametrize(
    "command", ["CAPABILITY", "LOGIN", "LIST", "STATUS", "EXAMINE", "UID FETCH"]
)
def test_a_literal_of_100_gb_is_refused_whoever_reads_it(scripted: System, command: str) -> None:
    """S12: at each command: before the login the standard library reads, then mailpoll."""
    answer = b'* LIST () "/" {107374182400}\r\nx'
    with in_memory(40 * MEGABYTE):
        refused(scripted, Rule(command, answer))


@pytest.mark.parametrize("command", ["CAPABILITY", "LOGIN"])
@pytest.mark.parametrize(
    "answer",
    [b"* OK still here\r\n" * 1_000_000, b"* OK " + b"x" * 20 * MEGABYTE],
    ids=["lines", "one line"],
)
def test_a_flood_before_the_login_is_cut(scripted: System, command: str, answer: bytes) -> None:
    """S13: the standard library would keep all of it."""
    with in_memory(60 * MEGABYTE):
        refused(scripted, Rule(command, answer))


def test_a_flood_in_place_of_a_greeting_is_cut(scripted: System) -> None:
    """S13: the very first line, before anything is known of who sends it."""
    with ScriptedImap(greeting=b"* OK " + b"x" * 30 * MEGABYTE) as server, in_memory(70 * MEGABYTE):
        assert polled(add(server)).last_error_kind == "protocol_error"


def test_many_literals_in_one_answer_are_counted_together(scripted: System) -> None:
    """S12: each is within the limit, and there is no end of them."""
    piece = b"* 1 FETCH (X {39000}\r\n" + b"x" * 39_000
    more = (b" X {39000}\r\n" + b"x" * 39_000) * 500
    with in_memory(60 * MEGABYTE):
        withheld(piece + more)


def test_names_of_folders_in_literals_are_counted_too(scripted: System) -> None:
    """S13: 64 MB for all of an answer, wherever in it the bytes stand."""
    folder = b'* LIST () "/" {1000000}\r\n' + b"x" * MEGABYTE + b"\r\n"
    refused(scripted, Rule("LIST", folder * 70))


def test_empty_lines_without_end_are_refused(scripted: System) -> None:
    """S13: each of them had the whole answer looked through again."""
    answer = b"* 1 FETCH (" + b"X " * 200_000 + b"{1}\r\nx" + b"\r\n" * 200_000
    started = time.process_time()
    withheld(answer)
    assert time.process_time() - started < 60


@pytest.mark.parametrize(
    "numbers",
    [b"1:4294967295", b",".join([b"1:4000000"] * 200_000)],
    ids=["one range", "ranges"],
)
def test_a_set_of_numbers_that_stands_for_billions_is_refused(numbers: bytes) -> None:
    """S12: some bytes that would become gigabytes of numbers."""
    with in_memory(500 * MEGABYTE), pytest.raises(ImapError) as caught:
        responses.searched([b"UID", b"ALL", numbers], 2**32)
    assert caught.value.fault is Fault.PROTOCOL


def test_answers_that_stand_for_billions_together_are_refused(scripted: System) -> None:
    """S12: each is within the limit of one."""
    flood = b'* ESEARCH (TAG "x") UID ALL 1:4000000\r\n' * 1_000
    with ScriptedImap(rules=[Rule("UID SEARCH", flood)]) as server:
        login = Login(HOST, server.port, "plain", "u", "password", "p")
        with (
            connect(login, scripted.settings, 60) as session,
            in_memory(900 * MEGABYTE),
            pytest.raises(ImapError) as caught,
        ):
            session.compact_uids(1, 5_000_000)
    assert caught.value.fault is Fault.PROTOCOL
