"""``GET /admin/search`` and ``mailpoll search``: one behaviour on both databases."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner

from mailpoll import database, search, threads
from mailpoll.actors import process_message
from mailpoll.actors.process import process
from mailpoll.cli import cli
from mailpoll.models import EmailFolder, EmailRawMessage, EmailSearch
from mailpoll.search import document, finding, index
from tests.integration.rows import account_row
from tests.integration.system import System, message

#: INTERNALDATE of the first message; each next one is a day later (2023-11-14 and on).
START, DAY = 1_700_000_000, 86_400


def mail(subject: str, text: str, sender: str = "Ann <ann@example.org>", **headers: str) -> bytes:
    """A message in UTF-8."""
    lines = [
        f"From: {sender}",
        "To: team@example.org",
        f"Subject: {subject}",
        "Content-Type: text/plain; charset=utf-8",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n" + text).encode()


MAIL = {
    "invoice": mail(
        "Invoice for October",
        "Please pay the amount soon.\r\n",
        sender="Ana Ågren <ana@shop.example>",
    ),
    "reply": mail("Re: Invoice for October", "I have paid it.\r\n", In_Reply_To="<x@y.example>"),
    "draft": mail("Draft of the invoice", "Not to be sent: the exact phrase is here.\r\n"),
    "phrase": mail("Words", "The phrase was not so exact, yet a phrase exact.\r\n"),
    "crème": mail("Crème brûlée", "Straße nach Łódź\r\n"),
    "chinese": mail("Greetings", "您好。電子郵件已經收到。\r\n"),
    "japanese": mail("Greetings", "東京都でバスに乗りました。\r\n"),
    "korean": mail("Greetings", "내일 회의를 합니다.\r\n"),
    "html": b"\r\n".join(
        [
            b"From: news@letters.example",
            b"Subject: Letter",
            b"Content-Type: text/html; charset=utf-8",
            b"",
            b"<p>Our <b>markup</b> sale</p><script>alert('hidden')</script>",
        ]
    ),
    "attached": b"\r\n".join(
        [
            b"From: carl@example.org",
            b"Subject: The file",
            b"Cc: Dora <dora@elsewhere.example>",
            b'Content-Type: multipart/mixed; boundary="b"',
            b"",
            b"--b",
            b"",
            b"Here it is. " + b"filler " * 3_000,
            b"--b",
            b"Content-Disposition: attachment; filename=Quarterly-Report.pdf",
            b"",
            b"%PDF",
            b"--b--",
        ]
    ),
}


@pytest.fixture
def account(system: System, address: str) -> str:
    """A mailbox with all of ``MAIL``, a day apart; the last two lie in another folder."""
    for number, raw in enumerate(MAIL.values()):
        folder = "Old/Archive" if number >= len(MAIL) - 2 else "INBOX"
        system.dovecot.deliver(address, raw, folder, received_at=START + number * DAY)
    account = system.add_account(address)
    system.poll_and_process(account)
    return account


def name_of(item: dict[str, Any]) -> str:
    numbers = {START + number * DAY: name for number, name in enumerate(MAIL)}
    return numbers[int(datetime.fromisoformat(item["internal_date"]).timestamp())]


def found(system: System, q: str, **more: Any) -> list[str]:
    """What a query finds, by the names of ``MAIL``, as one list whatever the pages."""
    names: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = system.get("/admin/search", q=q, **more, **cursor)
        names += map(name_of, page["items"])
        if page["next"] is None:
            return names
        cursor = {"cursor": page["next"]}


QUERIES = {
    "invoice": {"invoice", "reply", "draft"},
    "INVOICES": set(),
    "invoi*": {"invoice", "reply", "draft"},
    "invoice october": {"invoice", "reply"},
    "invoice -draft": {"invoice", "reply"},
    "-invoice -greetings": {"phrase", "crème", "html", "attached"},
    '"exact phrase"': {"draft"},
    '"phrase exact"': {"phrase"},
    '-"exact phrase" phrase': {"phrase"},
    '"exact phra"*': {"draft"},
    "subject:invoice": {"invoice", "reply", "draft"},
    "subject:exact": set(),
    'subject:"invoice for october"': {"invoice", "reply"},
    "from:ana": {"invoice"},
    "from:agren": {"invoice"},
    "from:ana@shop.example": {"invoice"},
    "from:shop.exam*": {"invoice"},
    "to:team@example.org invoice": {"invoice", "reply", "draft"},
    "to:dora": {"attached"},
    "from:dora": set(),
    "dora": {"attached"},
    "creme": {"crème"},
    "BRÛLÉE": {"crème"},
    "strasse lodz": {"crème"},
    "郵件": {"chinese"},
    "電子郵件": {"chinese"},
    "件": {"chinese"},
    "電郵": set(),
    "您好": {"chinese"},
    "東京": {"japanese"},
    "東京都": {"japanese"},
    "京": {"japanese"},
    "バス": {"japanese"},
    "ハス": set(),
    "회의": {"korean"},
    "내일 회의": {"korean"},
    "의를": {"korean"},
    "markup": {"html"},
    "hidden": set(),
    "alert": set(),
    "quarterly": {"attached"},
    "filename:report.pdf": {"attached"},
    "filename:repo*": {"attached"},
    "has:attachment": {"attached"},
    "-has:attachment invoice": {"invoice", "reply", "draft"},
    "is:reply": {"reply"},
    "paid OR markup": {"reply", "html"},
    "(paid OR pay) invoice": {"invoice", "reply"},
    "paid OR -greetings": set(MAIL) - {"chinese", "japanese", "korean"},
    "-(paid OR greetings OR invoice)": {"phrase", "crème", "html", "attached"},
    "after:2023-11-23": {"attached"},
    "after:2023-11-22": {"html", "attached"},
    "before:2023-11-15": {"invoice"},
    "-after:2023-11-15": {"invoice"},
    "after:2023-11-15 before:2023-11-17 -paid": {"draft"},
    "newer_than:1d": set(),
    "older_than:7d invoice": {"invoice", "reply", "draft"},
    "larger:10k": {"attached"},
    "smaller:10k invoice": {"invoice", "reply", "draft"},
    "-larger:10k dora": set(),
    "in:old/archive": {"html", "attached"},
    "in:inbox greetings": {"chinese", "japanese", "korean"},
    "-in:inbox": {"html", "attached"},
    "in:old/archive markup": {"html"},
    "in:old/archive -markup": {"attached"},
    'in:old/archive -"our markup sale"': {"attached"},
    "in:old/archive (markup OR invoice)": {"html"},
    "larger:10k in:old/archive": {"attached"},
    "in:old/archive mark*": {"html"},
    "in:old/archive -mark*": {"attached"},
    "in:inbox 郵": {"chinese"},
    "in:nowhere": set(),
    'in:"x\' OR 1=1"': set(),
    "is:imported invoice": {"invoice", "reply", "draft"},
    "is:expunged": set(),
    "-is:expunged quarterly": {"attached"},
    "x_": set(),
    '"a b c" OR 電': {"chinese"},
    "the phrase -exact*": set(),
}


@pytest.mark.parametrize("few", [0, 1_000])
def test_what_queries_find(
    system: System, account: str, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """Whether or not few messages fulfil a condition, by which alone they are looked for then."""
    monkeypatch.setattr(finding, "FEW", few)
    for query, names in QUERIES.items():
        for more in ({}, {"sort": "date"}, {"account": account}):
            assert set(found(system, query, **more)) == names, (query, more)
    assert found(system, "invoice", account=system.add_account("nobody@example.org")) == []


@pytest.mark.parametrize("sort", ["rank", "date"])
@pytest.mark.parametrize("limit", [1, 2, 200])
def test_pages_have_every_hit_once(system: System, account: str, sort: str, limit: int) -> None:
    names = found(system, "-nothing", sort=sort, limit=limit)
    assert names == list(reversed(MAIL))
    assert sorted(found(system, "invoice OR phrase", sort=sort, limit=limit)) == sorted(
        ("invoice", "reply", "draft", "phrase")
    )


def test_the_best_come_first_and_the_newest_among_equals(system: System, account: str) -> None:
    # "phrase" stands in texts only, "words" in a subject
    assert found(system, "phrase words OR phrase") == ["phrase", "draft"]
    assert found(system, "phrase") == ["phrase", "draft"]
    assert found(system, "invoice OR paid OR exact") == ["draft", "reply", "invoice", "phrase"]
    assert found(system, "exact OR subject:draft") == ["draft", "phrase"]
    assert found(system, "example OR words")[0] == "phrase"
    assert found(system, "invoice", sort="date") == ["draft", "reply", "invoice"]
    (hit,) = system.get("/admin/search", q="from:ana october")["items"]
    assert hit["score"] == 7


def test_ranks_are_of_the_newest_and_older_ones_follow(
    system: System, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "RANKED", 4)
    # Of the newest four only one has it in its subject; older ones come by date
    names = found(system, "letter OR -nothing", limit=3)
    assert names == ["html", "attached", "korean", "japanese", *reversed(list(MAIL)[:6])]
    for limit in (1, 2, 4, 5, 200):
        assert found(system, "letter OR -nothing", limit=limit) == names


def test_pages_stay_stable_while_mail_comes_in(system: System, account: str, address: str) -> None:
    first = system.get("/admin/search", q="invoice", limit=1)
    system.dovecot.deliver(address, message("Invoice, invoice, newest"))
    system.poll_and_process(account)
    second = system.get("/admin/search", q="invoice", limit=5, cursor=first["next"])
    assert [name_of(hit) for hit in (*first["items"], *second["items"])] == [
        "draft",
        "reply",
        "invoice",
    ]


def test_hits_show_what_was_found_as_pieces(system: System, account: str) -> None:
    (hit,) = system.get("/admin/search", q='subject:creme "strasse nach"')["items"]
    assert hit["subject_pieces"] == [
        {"text": "Crème", "match": True},
        {"text": " brûlée", "match": False},
    ]
    assert hit["excerpt"] == [
        {"text": "Straße", "match": True},
        {"text": " ", "match": False},
        {"text": "nach", "match": True},
        {"text": " Łódź", "match": False},
    ]
    assert hit["account_id"] == account
    assert hit["thread_id"]


@pytest.mark.parametrize(
    ("q", "offset"),
    [('say "hello', 4), ("from:ana form:bob", 9), ("a OR larger:1M", 5), ("   ", 0), ("a\0", 0)],
)
def test_a_wrong_query_is_a_problem_that_says_where(embedded: System, q: str, offset: int) -> None:
    answer = embedded.api.simulate_get("/admin/search", params={"q": q})
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    (error,) = answer.json["errors"]
    assert (error["field"], error["offset"]) == ("q", offset)
    assert f"at character {offset}" in answer.json["detail"]


@pytest.mark.parametrize(
    ("field", "params"),
    [
        ("q", {}),
        ("q", {"q": ""}),
        ("q", {"q": "x" * 1_001}),
        ("sort", {"q": "x", "sort": "size"}),
        ("limit", {"q": "x", "limit": "0"}),
        ("limit", {"q": "x", "limit": "1000"}),
        ("account", {"q": "x", "account": "me"}),
        ("cursor", {"q": "x", "cursor": "x"}),
        ("cursor", {"q": "x", "cursor": "WzFd"}),
        ("cursor", {"q": "x", "cursor": "WzEsMixudWxsLDRd"}),
        ("order", {"q": "x", "order": "x"}),
    ],
)
def test_a_wrong_parameter_is_named(embedded: System, field: str, params: dict[str, str]) -> None:
    answer = embedded.api.simulate_get("/admin/search", params=params)
    assert answer.status_code == 422, answer.text
    assert answer.json["errors"][0]["field"] == field


def test_an_unknown_account_is_not_searched(embedded: System) -> None:
    params = {"q": "x", "account": "00000000-0000-0000-0000-000000000000"}
    assert embedded.api.simulate_get("/admin/search", params=params).status_code == 404


def test_a_deleted_account_is_not_found_any_more(system: System, account: str) -> None:
    assert found(system, "invoice")
    job = system.api.simulate_delete(f"/admin/email-accounts/{account}").json
    # At once, though its rows are there still
    assert found(system, "invoice") == []
    system.work_until(lambda: system.get(f"/admin/jobs/{job['id']}")["state"] == "done")
    receipt = system.get(f"/admin/delete-jobs/{job['id']}")
    assert receipt["rows"]["email_search"] == len(MAIL)
    assert receipt["rows"]["email_thread_keys"]
    assert not any(receipt["scan"]["found"].values())
    if database.is_sqlite():
        assert entries() == 0


def entries() -> int:
    """What SQLite's index has, by the index itself."""
    with database.connected():
        rows = database.proxy.execute_sql(
            "SELECT COUNT(*) FROM email_search_index WHERE email_search_index MATCH 'x_'"
        )
        return int(rows.fetchone()[0])


@pytest.mark.leaves_damage
def test_a_message_takes_its_entry_with_it(system: System, account: str) -> None:
    with database.transaction():
        row = EmailRawMessage.get(EmailRawMessage.subject == "Draft of the invoice")
        database.proxy.execute_sql(f"DELETE FROM email_locations WHERE message_id = {row.id}")
        EmailRawMessage.delete().where(EmailRawMessage.id == row.id).execute()
    assert set(found(system, "invoice")) == {"invoice", "reply"}
    if database.is_sqlite():
        assert entries() == len(MAIL) - 1


def test_processing_again_changes_nothing(system: System, account: str) -> None:
    before = rows()
    with database.transaction():
        table = EmailRawMessage
        ids = [row_id for (row_id,) in table.select(table.id).tuples()]
        table.update(status="stored", attempts=0).execute()
        database.proxy.execute_sql("DELETE FROM email_attachments")
        database.proxy.execute_sql(
            "UPDATE email_account_days SET attachments = 0, attachment_bytes = 0"
        )
    process(ids)
    process_message.fn(ids[0])
    assert rows() == before
    assert set(found(system, "invoice")) == {"invoice", "reply", "draft"}


def rows() -> list[tuple[Any, ...]]:
    with database.connected():
        return sorted(EmailSearch.select().tuples())


def test_many_messages_of_one_second_each_have_a_place(
    system: System, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "BITS", 1)
    table = EmailRawMessage
    with database.transaction():
        dates = dict(table.select(table.id, table.internal_date).tuples())
        table.update(internal_date=database.now()).execute()
        EmailSearch.delete().execute()
    search.catch_up(None, lambda _: None)
    assert len(rows()) == len(MAIL)
    assert len(system.get("/admin/search", q="invoice")["items"]) == 3
    with database.transaction():
        for row_id, moment in dates.items():
            table.update(internal_date=moment).where(table.id == row_id).execute()


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(cli, list(arguments))
    assert result.exit_code == 0, result.output
    return result


def test_the_command_line_searches(system: System, account: str) -> None:
    lines = run("search", "invoice -draft", "--json").stdout.splitlines()
    assert [json.loads(line)["subject"] for line in lines] == [
        "Re: Invoice for October",
        "Invoice for October",
    ]
    text = run("search", "from:ana invoice", "--account", account).stdout
    assert "Invoice for October" in text
    assert "Please pay the amount" in text
    wrong = CliRunner().invoke(cli, ["search", 'say "hello'])
    assert wrong.exit_code == 1
    assert "at character 4" in wrong.output


def test_the_index_can_be_made_anew(system: System, account: str) -> None:
    before = rows()
    # Given an index of which a part is lost, and a part of an older version
    with database.transaction():
        database.proxy.execute_sql("DELETE FROM email_search WHERE id & 1 = 0")
        database.proxy.execute_sql("UPDATE email_search SET version = 0")
    # When it is made anew
    assert json.loads(run("reindex", "--json").stdout) == {"messages": len(MAIL)}
    # Then all is as it was, and there is nothing more to do but by force
    assert rows() == before
    assert json.loads(run("reindex", "--json").stdout) == {"messages": 0}
    assert json.loads(run("reindex", "--all", "--json", "--account", account).stdout) == {
        "messages": len(MAIL)
    }
    assert rows() == before
    for query, names in QUERIES.items():
        assert set(found(system, query)) == names, query


@pytest.mark.parametrize("alone", [False, True])
def test_making_it_anew_goes_on_where_it_was(
    system: System, account: str, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    monkeypatch.setattr(index, "PAGE", 3)
    before = rows()
    only = account_row(account) if alone else None

    class Killed(Exception):
        pass

    def killed(progress: search.Progress) -> None:
        if progress.done == 6:
            raise Killed

    with pytest.raises(Killed):
        search.catch_up(only, killed, everything=True)
    told: list[int] = []
    progress = search.catch_up(only, lambda now: told.append(now.done), everything=True)
    assert (progress.done, progress.total, told) == (4, 4, [3, 4])
    assert rows() == before
    assert search.catch_up(only, lambda _: None, everything=True).done == len(MAIL)


def test_fsck_finds_and_mends_what_the_index_lacks(system: System, account: str) -> None:
    from mailpoll import fsck

    with database.transaction():
        ids = [row_id for (row_id,) in EmailSearch.select(EmailSearch.id).tuples()]
        database.proxy.execute_sql(f"DELETE FROM email_search WHERE id = {ids[0]}")
        if database.is_sqlite():
            database.proxy.execute_sql(
                "INSERT INTO email_search_index (rowid, words) VALUES (77, ?)",
                (f"x_ a_{account_row(account).id} lost",),
            )
    row = account_row(account)
    kinds = [str(one.kind) for one in fsck.check(row, fsck.Tally(), offline=True)]
    assert kinds == ["not_indexed", *(["index_leftover"] if database.is_sqlite() else [])]
    list(fsck.check(row, fsck.Tally(), offline=True, repair=True))
    assert list(fsck.check(row, fsck.Tally(), offline=True)) == []
    assert set(found(system, "invoice")) == {"invoice", "reply", "draft"}


def test_a_text_is_indexed_up_to_its_limit(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "early " + "filler " * 30_000 + "late\r\n"
    system.dovecot.deliver(address, message("long", body))
    account = system.add_account(address)
    system.poll_and_process(account)
    assert len(system.get("/admin/search", q="early")["items"]) == 1
    assert system.get("/admin/search", q="late")["items"] == []


def test_mail_of_years_to_come_hides_nothing_and_keeps_the_newest_months_apart(
    system: System, address: str
) -> None:
    now = datetime.now(UTC)
    moments = {
        "far": datetime(2099, 5, 1, tzinfo=UTC),
        "near": datetime(2050, 2, 1, tzinfo=UTC),
        "now": now,
        "before": now - timedelta(days=70),
        "old": datetime(2009, 2, 1, tzinfo=UTC),
        "older": datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC),
    }
    for name, moment in moments.items():
        received_at = int(moment.timestamp())
        system.dovecot.deliver(address, mail(name, "everywhere"), received_at=received_at)
    account = system.add_account(address)
    system.poll_and_process(account)
    hits = system.get("/admin/search", q="everywhere", sort="date")["items"]
    assert [hit["subject"] for hit in hits] == list(moments)
    hits = system.get("/admin/search", q="everywhere before:2050-01-01", sort="date")["items"]
    assert [hit["subject"] for hit in hits] == list(moments)[2:]
    # PostgreSQL reads what is to come with the present month, and then ever more months that are
    months = [document.month_of(moment) for moment in moments.values()]
    with database.connected():
        windows = [list(window) for window, _, _ in finding._windows(0, finding.END)]
    assert windows == [months[:3], months[3:]]


def test_making_the_index_anew_waits_for_threads_before_it_takes_messages(
    system: System, address: str
) -> None:
    system.dovecot.deliver(address, mail("one", "text"))
    account = system.add_account(address)
    system.poll_and_process(account)
    with database.connected():
        row = EmailRawMessage.get()
    with ThreadPoolExecutor(1) as pool:
        # A worker that makes threads of new messages moves old ones to other threads
        with database.transaction():
            threads.lock(row.account_id)
            reindexing = pool.submit(index.index_stored, [row.id])
            time.sleep(0.5)
            assert not reindexing.done()
            threads.MOVE_MESSAGES.run(row.thread_id, row.account_id, [row.thread_id])
        reindexing.result(30)


def test_mail_of_an_account_that_gets_another_login_lies_nowhere(
    system: System, account: str
) -> None:
    with database.transaction():
        EmailFolder.forget_numbers(account_row(account).id)
    assert set(found(system, "is:expunged")) == set(MAIL)
