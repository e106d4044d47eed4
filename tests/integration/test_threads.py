"""Conversations: the same whatever the order in which their messages come in."""

import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailpoll import database, threads
from mailpoll.models import EmailAccount, EmailRawMessage, EmailThreadKey
from mailpoll.threads import Member, base_subject, member
from tests.integration.rows import account_row
from tests.integration.system import System

DAY = 86_400
START = datetime(2026, 1, 15, tzinfo=UTC)


def mail(subject: str, own: str = "", **fields: str) -> bytes:
    """A message with just these fields."""
    lines = [
        f"Subject: {subject}",
        *([f"Message-ID: <{own}>"] if own else []),
        *(f"{name.replace('_', '-').title()}: {value}" for name, value in fields.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\ntext\r\n").encode()


def threads_of(system: System, account: str) -> dict[str, int]:
    """Threads by subject."""
    return {item["subject"]: item["thread_id"] for item in system.messages(account)}


def partition(found: dict[str, int]) -> set[frozenset[str]]:
    return {
        frozenset(name for name, thread in found.items() if thread == one) for one in found.values()
    }


CONVERSATION = [
    mail("Lunch", "1@x"),
    mail("Re: Lunch", "2@x", in_reply_to="<1@x>"),
    mail("Re: Lunch (was better)", "3@x", references="<1@x> <2@x>", in_reply_to="<2@x>"),
    mail("Another", "4@x"),
    mail("No identifier at all"),
    mail("No identifier either"),
    mail("Re: of the lost", "5@x", in_reply_to="<lost@x>"),
    mail("Re: of the lost too", "6@x", references="<lost@x>"),
    mail("A phrase", "7@x", in_reply_to="your message of Monday"),
    mail("A phrase again", "8@x", in_reply_to="your message of Monday"),
]
TOGETHER = {
    frozenset({"Lunch", "Re: Lunch", "Re: Lunch (was better)"}),
    frozenset({"Another"}),
    frozenset({"No identifier at all"}),
    frozenset({"No identifier either"}),
    frozenset({"Re: of the lost", "Re: of the lost too"}),
    frozenset({"A phrase"}),
    frozenset({"A phrase again"}),
}


@pytest.mark.parametrize("backwards", [False, True])
def test_messages_that_refer_to_each_other_are_a_thread(
    system: System, address: str, backwards: bool
) -> None:
    raws = CONVERSATION[::-1] if backwards else CONVERSATION
    account = system.add_account(address)
    for number, raw in enumerate(raws):
        system.dovecot.deliver(address, raw, received_at=1_700_000_000 + number)
        if number % 4 == 0:
            system.poll_and_process(account)
    system.poll_and_process(account)
    assert partition(threads_of(system, account)) == TOGETHER


def test_a_thread_is_shown_and_listed(system: System, address: str) -> None:
    for number, raw in enumerate(CONVERSATION):
        system.dovecot.deliver(address, raw, received_at=1_700_000_000 + number * DAY)
    account = system.add_account(address)
    system.poll_and_process(account)
    of = threads_of(system, account)
    # A thread's messages, oldest first, page by page
    path = f"/admin/threads/{of['Lunch']}"
    first = system.get(path, limit=2)
    assert [item["subject"] for item in first["items"]] == ["Lunch", "Re: Lunch"]
    rest = system.get(path, limit=2, cursor=first["next"])
    assert [item["subject"] for item in rest["items"]] == ["Re: Lunch (was better)"]
    assert rest["next"] is None
    assert (first["id"], first["account_id"]) == (of["Lunch"], account)
    # Threads by their newest message, page by page
    listed: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = system.get(f"/admin/email-accounts/{account}/threads", limit=3, **cursor)
        listed += page["items"]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert [(item["newest"]["subject"], item["messages"]) for item in listed] == [
        ("A phrase again", 1),
        ("A phrase", 1),
        ("Re: of the lost too", 2),
        ("No identifier either", 1),
        ("No identifier at all", 1),
        ("Another", 1),
        ("Re: Lunch (was better)", 3),
    ]
    assert len({item["id"] for item in listed}) == 7
    # And searches know them
    hits = system.get("/admin/search", q=f"thread:{of['Lunch']} better")["items"]
    assert [hit["subject"] for hit in hits] == ["Re: Lunch (was better)"]
    assert len(system.get("/admin/search", q=f"thread:{of['Lunch']}")["items"]) == 3
    hits = system.get("/admin/search", q=f"-thread:{of['Lunch']} lunch")["items"]
    assert hits == []


def test_a_thread_is_found_by_each_number_that_it_ever_had(system: System, address: str) -> None:
    # Given two threads, of which nothing tells that they are one
    account = system.add_account(address)
    for name in ("a", "b"):
        system.dovecot.deliver(address, mail(name, f"{name}@x"))
        system.poll_and_process(account)
    before = threads_of(system, account)
    assert before["a"] != before["b"]
    # When a message comes that refers to both
    system.dovecot.deliver(address, mail("both", "c@x", references="<a@x> <b@x>"))
    system.poll_and_process(account)
    # Then both numbers lead to the same
    assert len(set(threads_of(system, account).values())) == 1
    shown = [system.get(f"/admin/threads/{number}") for number in before.values()]
    assert shown[0] == shown[1]
    for number in before.values():
        hits = system.get("/admin/search", q=f"thread:{number}")["items"]
        assert sorted(hit["subject"] for hit in hits) == ["a", "b", "both"]
    assert shown[0]["id"] in before.values()
    assert len(shown[0]["items"]) == 3


def test_an_unknown_thread_is_not_found(embedded: System) -> None:
    assert embedded.api.simulate_get("/admin/threads/1").status_code == 404
    assert embedded.api.simulate_get("/admin/threads/0").status_code == 404


def test_threads_of_two_accounts_never_meet(system: System, address: str) -> None:
    accounts = []
    for who in ("one", "two"):
        for raw in CONVERSATION[:3]:
            system.dovecot.deliver(f"{who}-{address}", raw)
        accounts.append(system.add_account(f"{who}-{address}"))
        system.poll_and_process(accounts[-1])
    one, two = (set(threads_of(system, account).values()) for account in accounts)
    assert len(one) == len(two) == 1
    assert one != two


def test_a_hostile_list_of_references_costs_little(system: System, address: str) -> None:
    many = " ".join(f"<{n}@x>" for n in range(5_000))
    long = f"<{'y' * 5_000}@x>"
    system.dovecot.deliver(address, mail("many", "own@x", references=many))
    system.dovecot.deliver(address, mail("itself", "self@x", references="<self@x> <self@x>"))
    system.dovecot.deliver(address, mail("circle a", "ca@x", references="<cb@x>"))
    system.dovecot.deliver(address, mail("circle b", "cb@x", references="<ca@x>"))
    system.dovecot.deliver(address, mail("long a", "la@x", references=long))
    system.dovecot.deliver(address, mail("long b", "lb@x", references=long))
    account = system.add_account(address)
    system.poll_and_process(account)
    found = partition(threads_of(system, account))
    assert found == {
        frozenset({"many"}),
        frozenset({"itself"}),
        frozenset({"circle a", "circle b"}),
        frozenset({"long a"}),
        frozenset({"long b"}),
    }
    with database.connected():
        assert EmailThreadKey.select().count() < 50


# Replies that refer to nothing


def letter(subject: str, sender: str, to: str, day: int = 0, **fields: Any) -> dict[str, Any]:
    given = {
        "own": "",
        "in_reply_to": "",
        "references": [],
        "subject": subject,
        "sender": f"{sender}@x",
        "recipients": [f"{one}@x" for one in to.split()],
        "moment": START + timedelta(days=day),
    }
    return given | fields


@pytest.mark.parametrize(
    ("letters", "together"),
    [
        # A reply of a program that drops what it replies to
        ([letter("Offer", "ann", "bob"), letter("Re: offer", "bob", "ann", 3)], True),
        ([letter("Offer", "ann", "bob eve"), letter("AW: Offer", "bob", "ann", 3)], True),
        ([letter("[team] Offer", "ann", "bob"), letter("Re: [team] Offer", "bob", "ann")], True),
        ([letter("Re: Offer", "ann", "bob"), letter("Re: Offer", "bob", "ann", 3)], True),
        # Between other people, much later, of another subject, or of none
        ([letter("Offer", "ann", "bob"), letter("Re: Offer", "eve", "ann")], False),
        ([letter("Offer", "ann", "bob"), letter("Fwd: Offer", "bob", "eve")], False),
        ([letter("Offer", "ann", "bob"), letter("Re: Offer", "bob", "ann", 70)], False),
        ([letter("Offer", "ann", "bob"), letter("Re: Offers", "bob", "ann")], False),
        ([letter("", "ann", "bob"), letter("Re: ", "bob", "ann")], False),
        ([letter("Hi", "ann", "bob"), letter("Re: Hi", "bob", "ann")], False),
        # The same subject alone ties nothing
        ([letter("Report", "ann", "bob"), letter("Report", "ann", "bob", 1)], False),
        # Who tells what it replies to is believed
        (
            [
                letter("Offer", "ann", "bob", own="1@x"),
                letter("Re: Offer", "bob", "ann", in_reply_to="other@x"),
            ],
            False,
        ),
    ],
)
def test_a_reply_that_refers_to_nothing(
    system: System, letters: list[dict[str, Any]], together: bool
) -> None:
    for order in (letters, letters[::-1]):
        found = threaded(new_account(), [make(number, one) for number, one in order_of(order)])
        assert (len(set(found.values())) == 1) is together, order
    drop_accounts()


def order_of(letters: Sequence[dict[str, Any]]) -> Iterable[tuple[int, dict[str, Any]]]:
    return enumerate(letters, 1)


def make(number: int, fields: dict[str, Any]) -> Member:
    return member(number, "account", **fields)


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("Re: Fwd: AW: Offer", ("offer", True)),
        ("RE[2]: Offer", ("offer", True)),
        ("Offer", ("offer", False)),
        ("[list] Re: [list]  The   Offer", ("the offer", True)),
        ("回复\uff1a报价单", ("报价单", True)),
        ("답장: 견적서", ("견적서", True)),
        ("Reply: Offer", ("reply: offer", False)),
        ("Re:", ("", True)),
        ("[only]", ("[only]", False)),
        ("Regarding: x", ("regarding: x", False)),
        (" re :x", ("re :x", False)),
        ("Re: " * 500, ("", True)),
    ],
)
def test_the_subject_without_its_prefixes(subject: str, expected: tuple[str, bool]) -> None:
    found, prefixed = base_subject(subject)
    if subject == "Re: " * 500:
        found = ""
    assert (found, prefixed) == expected


# The same whatever the order


def new_account() -> int:
    moment = database.now()
    with database.transaction():
        number = EmailAccount.select().count()
        account = EmailAccount.create(
            uuid=f"thread-account-{number}",
            address=f"{number}@example.org",
            host="x",
            port=993,
            security="tls",
            username="x",
            credential="-",
            data_key="-",
            poll_interval=60,
            next_poll_at=moment,
            created_at=moment,
            updated_at=moment,
        )
    return int(account.id)


def drop_accounts() -> None:
    with database.transaction():
        EmailThreadKey.delete().execute()
        EmailRawMessage.delete().execute()
        EmailAccount.delete().execute()


def threaded(account: int, members: Sequence[Member], size: int = 1) -> dict[int, int]:
    """The threads of messages that are processed in this order, so many in one transaction."""
    table = EmailRawMessage
    for start in range(0, len(members), size):
        with database.transaction():
            some = members[start : start + size]
            for message_id, thread_id in threads.assign(account, some).items():
                moment = database.now()
                table.insert(
                    id=account * 1_000 + message_id,
                    account=account,
                    sha256=str(message_id),
                    size=1,
                    storage_type="local",
                    storage_key="-",
                    internal_date=moment,
                    stored_at=moment,
                    imported=False,
                    thread_id=thread_id,
                ).execute()
    with database.connected():
        rows = table.select(table.id, table.thread_id).where(table.account == account).tuples()
        return {row_id - account * 1_000: thread_id for row_id, thread_id in rows}


IDENTIFIERS = st.sampled_from([f"{n}@x" for n in range(6)])
LETTERS = st.builds(
    lambda own, parent, references, subject, sender, to, day: letter(
        subject, sender, to, day, own=own, in_reply_to=parent, references=references
    ),
    st.one_of(st.just(""), IDENTIFIERS),
    st.one_of(st.just(""), st.just(""), IDENTIFIERS),
    st.lists(IDENTIFIERS, max_size=3),
    st.sampled_from(["Offer", "Re: Offer", "Report", "Re: Report", "Hi"]),
    st.sampled_from(["ann", "bob"]),
    st.sampled_from(["ann", "bob", "eve ann"]),
    st.sampled_from([0, 20, 40, 200]),
)


def groups(found: dict[int, int]) -> set[frozenset[int]]:
    return {
        frozenset(one for one, thread in found.items() if thread == each) for each in found.values()
    }


def by_the_rule(members: Sequence[Member]) -> set[frozenset[int]]:
    """The partition as it is defined, over all messages at once."""
    joining = {key for one in members if one.joins for key in one.pairs}
    ties = {
        one.message_id: {*one.names, *(key for key in one.pairs if key in joining)}
        for one in members
    }
    found: list[tuple[set[int], set[int]]] = []
    for message_id, keys in ties.items():
        met = [group for group in found if group[1] & keys]
        found = [group for group in found if not group[1] & keys]
        ids = {message_id}.union(*(group[0] for group in met))
        found.append((ids, keys.union(*(group[1] for group in met))))
    return {frozenset(ids) for ids, _ in found}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_every_order_of_arrival_gives_the_same_threads(system: System, data: Any) -> None:
    letters = data.draw(st.lists(LETTERS, min_size=2, max_size=9))
    members = [make(number, one) for number, one in order_of(letters)]
    order = data.draw(st.permutations(members))
    size = data.draw(st.integers(1, 4))
    try:
        account = new_account()
        found = threaded(account, order, size)
        assert groups(found) == by_the_rule(members)
        # The number of a thread is that of one of its messages
        assert all(thread_id in found for thread_id in found.values())
        # And doing some of it again changes nothing
        with database.transaction():
            again = threads.assign(account, order[:3])
        assert again == {one: found[one] for one in again}
    finally:
        drop_accounts()


def test_two_workers_at_once_split_no_thread(system: System) -> None:
    account = new_account()
    # Given threads that only their last messages make one, each with its own worker
    members = [
        make(number, letter("x", "ann", "bob", own=f"{number}@x", references=[f"{number + 1}@x"]))
        for number in range(1, 41)
    ]
    barrier = threading.Barrier(2)
    failed: list[BaseException] = []

    def work(mine: Sequence[Member]) -> None:
        try:
            barrier.wait()
            threaded(account, mine, 3)
        except BaseException as error:
            failed.append(error)

    workers = [threading.Thread(target=work, args=(members[half::2],)) for half in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failed == []
    with database.connected():
        table = EmailRawMessage
        assert table.select().count() == 40
        assert table.select(table.thread_id).distinct().count() == 1
        keys = EmailThreadKey
        assert keys.select(keys.thread_id).where(keys.joins).distinct().count() == 1
    drop_accounts()


def test_a_deleted_account_leaves_no_ties(system: System, address: str) -> None:
    for raw in CONVERSATION:
        system.dovecot.deliver(address, raw)
    account = system.add_account(address)
    system.poll_and_process(account)
    row_id = account_row(account).id
    with database.connected():
        assert EmailThreadKey.select().where(EmailThreadKey.account == row_id).exists()
    job = system.api.simulate_delete(f"/admin/email-accounts/{account}").json
    system.work_until(lambda: system.get(f"/admin/jobs/{job['id']}")["state"] == "done")
    with database.connected():
        assert not EmailThreadKey.select().exists()
