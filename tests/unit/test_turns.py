"""One thread of a process works at a time, and those that wait hold nobody up."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from mailpoll import turns

PATIENCE = 20

#: Stops itself while it has the turn, and goes on for a moment when it is continued.
STOPPED = """
import os, signal, time
from mailpoll import turns
with turns.working(2 * turns.LOOK):
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.01)
"""


def run_together(*works: Callable[[], None]) -> None:
    """Run each in a thread of its own until all have ended; raise what one raised."""
    failures: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"
    if failures:
        raise failures[0]


def test_an_interrupt_on_the_way_to_a_wait_leaves_the_turn_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(seconds: float) -> None:
        if seconds == float("inf"):
            monkeypatch.undo()
            raise turns.TurnTooLong

    def work() -> None:
        with pytest.raises(turns.TurnTooLong), turns.working():
            monkeypatch.setattr(turns, "_set_limit", interrupted)
            with turns.waiting():
                raise AssertionError("not reached")

    def work_after_it() -> None:
        with turns.working():
            pass

    run_together(work)
    run_together(work_after_it)


def test_one_thread_works_at_a_time() -> None:
    working: set[int] = set()
    most: list[int] = []

    def work() -> None:
        for _ in range(200):
            with turns.working():
                working.add(threading.get_ident())
                most.append(len(working))
                working.discard(threading.get_ident())

    run_together(*[work] * 8)
    assert max(most) == 1
    assert len(most) == 1_600


def test_who_waits_lets_others_work() -> None:
    done, began = threading.Event(), threading.Event()

    def wait() -> None:
        with turns.working(), turns.waiting():
            began.set()
            assert done.wait(PATIENCE)

    def work() -> None:
        assert began.wait(PATIENCE)
        with turns.working():
            done.set()

    run_together(wait, work)


def test_a_wait_within_a_wait_is_one() -> None:
    def work() -> None:
        with turns.working(), turns.waiting(), turns.waiting(), turns.waiting():
            pass

    run_together(*[work] * 4)


def test_an_error_gives_the_turn_back() -> None:
    def fail() -> None:
        try:
            with turns.working(), turns.waiting():
                raise ValueError
        except ValueError:
            return

    run_together(fail, fail)
    with turns.working():
        pass


def test_who_has_no_turn_needs_none_to_wait() -> None:
    with turns.waiting():
        pass


def test_who_works_without_end_is_interrupted_and_the_next_one_works() -> None:
    began = threading.Event()
    ended: list[str] = []

    def endless() -> None:
        with pytest.raises(turns.TurnTooLong), turns.working(0.01):
            began.set()
            while True:
                time.sleep(0.001)
        ended.append("endless")

    def work() -> None:
        assert began.wait(PATIENCE)
        with turns.working():
            ended.append("next")

    run_together(endless, work)
    assert sorted(ended) == ["endless", "next"]


def test_to_wait_for_long_is_not_to_work_for_long() -> None:
    looked = 3 * turns.LOOK

    def wait() -> None:
        with turns.working(looked / 2), turns.waiting():
            time.sleep(looked)

    run_together(wait)


def test_to_be_stopped_for_long_is_not_to_work_for_long() -> None:
    process = subprocess.Popen([sys.executable, "-c", STOPPED])
    os.waitpid(process.pid, os.WUNTRACED)
    time.sleep(5 * turns.LOOK)
    process.send_signal(signal.SIGCONT)
    assert process.wait(PATIENCE) == 0


def test_who_has_ended_its_work_is_not_interrupted_afterwards() -> None:
    with turns.working(0.01):
        pass
    time.sleep(3 * turns.LOOK)
