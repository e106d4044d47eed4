"""One thread of a process works at a time, and those that wait hold nobody up."""

import threading
from collections.abc import Callable

from mailpoll import turns

PATIENCE = 20


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
