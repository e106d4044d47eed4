"""Dramatiq interrupts a thread at any instruction: what the process shares must not go with it."""

import threading
import time
from collections.abc import Callable

import pytest
from dramatiq.threading import Interrupt, raise_thread_exception

from mailpoll import database, turns
from mailpoll.actors import poll as poll_module
from mailpoll.models import EmailAccount
from tests.integration.system import PATIENCE, System


class Victim(threading.Thread):
    """Runs ``work`` until it is interrupted while it waits for something.

    The interrupt is there before what the thread waits for, so that both come at once.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.was_interrupted = False

    def run(self) -> None:
        try:
            self.work()
        except Interrupt:
            self.was_interrupted = True

    def interrupt(self) -> None:
        time.sleep(0.1)  # it waits by now
        assert self.ident
        raise_thread_exception(self.ident, Interrupt)

    def ended(self) -> bool:
        self.join(PATIENCE / 4)
        return not self.is_alive()


def write() -> None:
    with database.transaction():
        pass


def work() -> None:
    with turns.working():
        pass


def write_in_turn() -> None:
    with turns.working():
        write()


@pytest.mark.parametrize("wait", [write, write_in_turn])
def test_a_writer_that_is_interrupted_as_its_turn_comes_leaves_the_next_one_in(
    embedded: System, wait: Callable[[], None]
) -> None:
    victim, next_one = Victim(wait), Victim(write_in_turn)
    with database.transaction():
        victim.start()
        victim.interrupt()
    assert victim.ended()
    assert victim.was_interrupted
    next_one.start()
    assert next_one.ended()


def test_a_thread_that_is_interrupted_as_it_gets_the_turn_back_gives_it_up() -> None:
    waits, goes_on = threading.Event(), threading.Event()

    def wait() -> None:
        with turns.working(), turns.waiting():
            waits.set()
            goes_on.wait(PATIENCE)

    victim, next_one = Victim(wait), Victim(work)
    victim.start()
    waits.wait(PATIENCE)
    with turns.working():
        goes_on.set()
        victim.interrupt()
    assert victim.ended()
    assert victim.was_interrupted
    next_one.start()
    assert next_one.ended()


def test_a_connection_goes_back_without_a_transaction_that_an_interrupt_has_left(
    embedded: System,
) -> None:
    next_one = Victim(write)
    with pytest.raises(Interrupt), database.connected():
        # As if the interrupt had come with the return of the statement
        database.proxy.connection().execute("BEGIN IMMEDIATE")
        raise Interrupt
    next_one.start()
    assert next_one.ended()


def test_a_poll_that_is_interrupted_at_its_end_leaves_no_lease_behind(
    embedded: System, address: str
) -> None:
    uuid = embedded.add_account(address)
    with database.connected():
        row_id = EmailAccount.get(EmailAccount.uuid == uuid).id
    account = EmailAccount.lease(row_id, None, 120)
    assert account
    victim = Victim(lambda: poll_module._release(account, {"last_poll_ms": 1}))
    with database.transaction():
        victim.start()
        victim.interrupt()
    assert victim.ended()
    assert victim.was_interrupted
    with database.connected():
        row = EmailAccount.get_by_id(row_id)
    assert (row.lease_until, row.last_poll_ms) == (None, 1)
