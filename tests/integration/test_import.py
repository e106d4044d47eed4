"""Mail in from files: by upload and by the ``mailpoll import`` command."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import urllib3

from mailpoll import accounts, actors, database, faults, runtime, spool
from mailpoll.archives import Unreadable, intake
from mailpoll.blobs import StoreUnavailable
from mailpoll.models import EmailEvent, EmailLocation, EmailRawMessage
from mailpoll.settings import settings
from tests.integration import oracle
from tests.integration.archived import (
    ACCOUNTS,
    add_archive,
    dates,
    download,
    environment,
    places,
    process,
    raws,
    upload,
)
from tests.integration.conftest import _embedded, run_system
from tests.integration.rows import account_row, blobs, change_messages, counts
from tests.integration.system import TOKEN, System, message
from tests.integration.test_cli import clean, run
from tests.security.live import running
from tests.servers.dovecot import Dovecot
from tests.unit.test_archives import NASTY, archive

BEGIN = b"From ann@example.org Thu Feb  1 12:00:00 2018\n"


def events(account: str) -> list[tuple[str, dict[str, Any]]]:
    with database.connected():
        rows = EmailEvent.select().where(EmailEvent.account_id == account_row(account).id)
        return [(row.type, row.data) for row in rows.order_by(EmailEvent.id)]


# --- an account without a server


def test_an_account_without_a_server_is_paused_and_stays_so(system: System, address: str) -> None:
    account = add_archive(system, address)
    shown = system.get(f"{ACCOUNTS}/{account}")
    assert (shown["archive"], shown["host"], shown["state"]) == (True, "", "paused")
    system.post(f"{ACCOUNTS}/{account}/poll", 409)
    for verb in ("resume", "test"):
        problem = system.post(f"{ACCOUNTS}/{account}/{verb}", 422)
        assert [one["field"] for one in problem["errors"]] == ["host"]
    assert system.get(f"{ACCOUNTS}/{account}/stats")["import"]["done"] is True


@pytest.mark.parametrize("more", [{"host": "localhost"}, {"password": "x"}, {"folders": ["A"]}])
def test_an_account_without_a_server_takes_an_address_only(
    embedded: System, address: str, more: dict[str, Any]
) -> None:
    problem = embedded.post(ACCOUNTS, 422, address=address, archive=True, **more)
    assert "archive" in problem["detail"]
    embedded.post(ACCOUNTS, 201, address=address, archive=True)
    embedded.post(ACCOUNTS, 409, address=address, archive=True)


def test_it_can_get_a_server_later_which_has_the_same_mail(system: System, address: str) -> None:
    mails = [message(str(number)) for number in range(5)]
    for mail in mails[2:]:
        system.dovecot.deliver(address, mail)
    account = add_archive(system, address)
    upload(system, account, archive("mbox", mails[:4]), folder="Old")
    process(system, account)
    new = system.new_account(address)
    change = {name: new[name] for name in ("host", "port", "password")}
    answer = system.api.simulate_patch(f"{ACCOUNTS}/{account}", json=change)
    assert answer.status_code == 200, answer.text
    system.post(f"{ACCOUNTS}/{account}/resume")
    system.poll_and_process(account)
    assert raws(account) == sorted(mails)
    found = sorted(places(account).values())
    assert found == [["INBOX"], ["INBOX", "Old"], ["INBOX", "Old"], ["Old"], ["Old"]]
    kinds = [kind for kind, _ in events(account) if kind.startswith("message.")]
    assert kinds.count("message.new") == 5
    assert kinds.count("message.located") == 2
    figures = system.get(f"{ACCOUNTS}/{account}/stats")
    assert {one["name"]: one["complete"] for one in figures["folders"]}["INBOX"] is True


# --- what goes in


def test_mail_that_was_imported_is_like_any_other(system: System, address: str) -> None:
    account = add_archive(system, address)
    mail = message("from a file").replace(b"23 Nov 2026", b"23 Nov 2020")
    assert upload(system, account, mail, name="a.eml") == {
        "new": 1,
        "known": 0,
        "places": 1,
        "bytes": len(mail),
        "left_out": 0,
        "reasons": [],
    }
    process(system, account)
    (row,) = system.messages(account)
    found = system.get(f"/admin/messages/{row['id']}")
    assert (found["subject"], found["status"]) == ("from a file", "processed")
    assert [place["folder"] for place in found["locations"]] == ["Imported"]
    assert found["internal_date"].startswith("2020-11-23T10:00:00")
    kind, data = events(account)[-1]
    assert (kind, data) == ("message.new", {"imported": True})
    assert system.get(f"{ACCOUNTS}/{account}/stats")["messages"] == 1


def test_importing_twice_changes_nothing(system: System, address: str) -> None:
    account = add_archive(system, address)
    data = archive("zip", NASTY)
    first = upload(system, account, data, name="a.zip")
    process(system, account)

    def state() -> Any:
        with database.connected():
            return (
                list(EmailRawMessage.select().order_by(EmailRawMessage.id).dicts()),
                list(EmailLocation.select().order_by(EmailLocation.id).dicts()),
                events(account),
                sorted(blobs(account)),
                counts(),
            )

    before = state()
    second = upload(system, account, data, name="a.zip")
    assert (second["new"], second["known"], second["places"]) == (0, len(NASTY), 0)
    assert first["new"] == len(set(NASTY))
    assert state() == before


def test_mail_that_was_polled_is_known_to_an_import(system: System, address: str) -> None:
    system.dovecot.deliver(address, message("both"))
    account = system.add_account(address)
    system.poll_and_process(account)
    mails = [message("both"), message("file only")]
    tally = upload(system, account, archive("mbox", mails), folder="Old")
    assert (tally["new"], tally["known"]) == (1, 1)
    process(system, account)
    assert sorted(places(account).values()) == [["INBOX", "Old"], ["Old"]]
    # A folder that the server does not list is not taken for one that has vanished.
    system.poll_and_process(account)
    assert sorted(places(account).values()) == [["INBOX", "Old"], ["Old"]]
    assert ("message.located", {"folder": "Old"}) in events(account)
    # What lies in a folder of that name gets no second place.
    again = upload(system, account, archive("mbox", [message("both")]), folder="INBOX")
    assert (again["known"], again["places"]) == (1, 0)


def test_folders_and_dates_come_from_the_archive(system: System, address: str) -> None:
    account = add_archive(system, address)
    body = BytesIO()
    with zipfile.ZipFile(body, "w") as outer:
        outer.writestr("Mail/Work/a.eml", message("a"))
        outer.writestr("Takeout/All mail.mbox", BEGIN + message("b") + b"\n")
        outer.writestr("loose.eml", b"Subject: no date\n\n")
    before = datetime.now(UTC)
    upload(system, account, body.getvalue(), name="x.zip")
    process(system, account)
    rows = {row["subject"]: row for row in system.messages(account)}
    folders = {
        name: [one["folder"] for one in system.get(f"/admin/messages/{row['id']}")["locations"]]
        for name, row in rows.items()
    }
    assert folders == {"a": ["Mail/Work"], "b": ["Takeout"], "no date": ["Imported"]}
    assert rows["b"]["internal_date"].startswith("2018-02-01T12:00:00")
    assert rows["a"]["internal_date"].startswith("2026-11-23T10:00:00")
    assert datetime.fromisoformat(rows["no date"]["internal_date"]) >= before


def test_a_folders_messages_can_be_listed(system: System, address: str) -> None:
    account = add_archive(system, address)
    upload(system, account, archive("mbox", [message("a"), message("b")]), folder="Å/日本")
    process(system, account)
    found = system.get(f"{ACCOUNTS}/{account}/messages", folder="Å/日本")["items"]
    assert len(found) == 2


# --- limits and errors


def test_what_is_too_large_is_reported_and_not_half_stored(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot, address: str
) -> None:
    variables = _embedded(request, tmp_path)
    for system in run_system(variables, tmp_path, dovecot, MAILPOLL_MAX_MESSAGE_BYTES="2000"):
        account = add_archive(system, address)
        mails = [message("small"), message("large", "x" * 3_000), message("other")]
        for kind in ("mbox", "zip", "maildir"):
            tally = upload(system, account, archive(kind, mails))
            assert tally["left_out"] == 1
            assert "MAILPOLL_MAX_MESSAGE_BYTES" in tally["reasons"][0]["reason"]
        assert raws(account) == sorted([mails[0], mails[2]])
        assert len(blobs(account)) == 2
        process(system, account)


def test_an_upload_has_a_limit(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot, address: str
) -> None:
    variables = _embedded(request, tmp_path)
    for system in run_system(variables, tmp_path, dovecot, MAILPOLL_IMPORT_BYTES="5000"):
        account = add_archive(system, address)
        problem = upload(system, account, b"x" * 5_001, 413)
        assert "5000" in problem["detail"]
        body = {"address": "x@example.org", "password": "y" * 1_000_000}
        answer = system.api.simulate_post(ACCOUNTS, json=body)
        assert answer.status_code == 413


@pytest.mark.parametrize(
    ("body", "name", "word"),
    [
        (b"\x1f\x8b\x08", "x.tar.gz", "gzip"),
        (b"PK\x03\x04 cut", "x.zip", "no zip"),
        (b"\x89PNG\r\n\x1a\n", "x.png", "is no mbox"),
        (b"Subject: x\n", "x.mbox", "is no mbox"),
    ],
)
def test_what_is_no_mail_is_refused(
    embedded: System, address: str, body: bytes, name: str, word: str
) -> None:
    account = add_archive(embedded, address)
    problem = upload(embedded, account, body, 422, name=name)
    assert word in problem["detail"]
    assert str(settings().data_dir) not in json.dumps(problem)
    assert blobs(account) == []
    assert list(spool.directory().iterdir()) == []


def test_an_upload_that_takes_hours_is_not_taken_for_what_a_killed_process_left(
    embedded: System,
) -> None:
    with spool.new_directory("some-account") as name:
        path = Path(name) / "upload"
        path.write_bytes(b"it began long ago")
        os.utime(name, (0, 0))
        spool.directory()
        assert path.exists()
        os.utime(path, (0, 0))
        spool.directory()
        assert not Path(name).exists()


def test_an_empty_body_and_wrong_fields_are_named(embedded: System, address: str) -> None:
    account = add_archive(embedded, address)
    assert upload(embedded, account, b"", 422)["errors"][0]["field"] == "body"
    assert upload(embedded, account, b"x", 422, folder="a\nb")["errors"][0]["field"] == "folder"
    assert upload(embedded, account, b"x", 422, other="1")["errors"][0]["field"] == "other"
    upload(embedded, "00000000-0000-4000-8000-000000000000", b"x", 404)


def test_a_dry_run_stores_nothing(system: System, address: str) -> None:
    account = add_archive(system, address)
    before = counts()
    tally = upload(system, account, archive("zip", [*NASTY, NASTY[3]]), dry_run=True)
    assert (tally["new"], tally["known"]) == (len(set(NASTY)), 1)
    assert counts() == before
    assert blobs(account) == []


def test_an_account_that_is_full_takes_no_more(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot, address: str
) -> None:
    variables = _embedded(request, tmp_path)
    for system in run_system(variables, tmp_path, dovecot, MAILPOLL_ACCOUNT_MESSAGES="2"):
        account = add_archive(system, address)
        upload(system, account, archive("mbox", [message("1"), message("2")]))
        upload(system, account, archive("mbox", [message("3")]), 409)
        assert len(raws(account)) == 2
        process(system, account)


def test_a_store_that_is_away_leaves_no_rows(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = add_archive(system, address)

    def refuse(_: Any) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(runtime.storage(), "put", refuse)
    upload(system, account, archive("mbox", NASTY), 503)
    assert "email_raw_messages" not in counts()
    assert list(spool.directory().iterdir()) == []


def test_an_import_that_died_is_simply_repeated(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Killed before and after each commit; what is there at last is what one run brings."""
    account = add_archive(system, address)
    path = tmp_path / "all.zip"
    path.write_bytes(archive("zip", NASTY))
    small = settings().model_copy(update={"batch_messages": 4})
    monkeypatch.setattr(intake, "settings", lambda: small)
    deaths = ["blobs-durable", "before-commit", "committed"] * 2

    def die(point: str) -> None:
        if deaths and point == deaths[0]:
            raise KeyboardInterrupt(deaths.pop(0))

    monkeypatch.setattr(faults, "point", die)
    for _ in range(20):
        try:
            intake.run(account_row(account), [path])
            break
        except KeyboardInterrupt:
            continue
    assert deaths == []
    assert raws(account) == sorted(set(NASTY))
    # What was committed and not enqueued any more is found by the sweep.
    change_messages(next_attempt_at=database.now())
    actors.sweep.fn()
    process(system, account)


def test_a_deletion_wins_over_an_import(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    account = add_archive(system, address)
    path = tmp_path / "x.mbox"
    path.write_bytes(archive("mbox", NASTY))

    def delete(point: str) -> None:
        if point == "blobs-durable":
            accounts.delete(account)

    monkeypatch.setattr(faults, "point", delete)
    with pytest.raises(accounts.AccountGone):
        intake.run(account_row(account), [path])
    monkeypatch.undo()
    assert blobs(account) == []
    assert "email_raw_messages" not in counts()


def test_an_import_whose_store_fails_half_way_leaves_nothing_of_a_deleted_account(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    account = add_archive(system, address)
    path = tmp_path / "x.mbox"
    path.write_bytes(archive("mbox", NASTY))
    put = runtime.storage().put

    def half(new: Any) -> None:
        accounts.delete(account)
        put(new[:1])
        assert len(new) > len(blobs(account)) == 1
        raise StoreUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(runtime.storage(), "put", half)
        with pytest.raises(accounts.AccountGone):
            intake.run(account_row(account), [path])
    assert blobs(account) == []
    assert "email_raw_messages" not in counts()


def test_an_import_beside_polls_brings_each_message_once(system: System, address: str) -> None:
    mails = [message(str(number)) for number in range(30)]
    for mail in mails:
        system.dovecot.deliver(address, mail)
    account = system.add_account(address)
    with system.workers():
        for start in range(0, 30, 5):
            upload(system, account, archive("mbox", mails[start : start + 5]), folder="Old")
    system.poll_and_process(account)
    assert raws(account) == sorted(mails)
    assert set(map(tuple, places(account).values())) == {("INBOX", "Old")}
    kinds = [kind for kind, _ in events(account)]
    assert kinds.count("message.new") == 30


def test_folders_of_an_import_are_sound_after_a_move(system: System, address: str) -> None:
    """The server's numbers are forgotten with another host; those of imports are not its own."""
    account = add_archive(system, address)
    upload(system, account, archive("mbox", [message("a")]), folder="Old")
    with database.transaction():
        from mailpoll.models import EmailFolder

        EmailFolder.forget_numbers(account_row(account).id)
    upload(system, account, archive("mbox", [message("a"), message("b")]), folder="Old")
    process(system, account)
    oracle.assert_sound()
    found = system.get(f"{ACCOUNTS}/{account}/stats")["folders"]
    assert [(one["name"], one["messages"]) for one in found] == [("Old", 2)]


# --- over a real connection


def test_a_large_upload_arrives_and_goes_out_again(
    embedded: System, address: str, tmp_path: Path
) -> None:
    account = add_archive(embedded, address)
    mails = [message(str(number), "x" * 100_000) for number in range(60)]
    with running(tmp_path) as web:
        answer = urllib3.request(
            "POST",
            f"{web.url}{ACCOUNTS}/{account}/import?name=x.mbox",
            body=archive("mbox", mails),
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=60,
        )
        assert answer.status == 200, answer.data
        assert answer.json()["new"] == 60
        exported = urllib3.request(
            "GET",
            f"{web.url}{ACCOUNTS}/{account}/export?format=zip",
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=60,
        )
        with zipfile.ZipFile(BytesIO(exported.data)) as opened:
            assert len([one for one in opened.namelist() if one.endswith(".eml")]) == 60
    process(embedded, account)


# --- the command


@pytest.fixture
def variables(embedded: System) -> dict[str, str]:
    return environment()


def test_the_command_adds_an_account_and_takes_files_and_directories(
    embedded: System, address: str, tmp_path: Path, variables: dict[str, str]
) -> None:
    (tmp_path / "a.mbox").write_bytes(archive("mbox", [message("a")]))
    cur = tmp_path / "M" / ".Sub" / "cur"
    cur.mkdir(parents=True)
    (cur / "1517486400.x:2,S").write_bytes(message("b"))
    (tmp_path / "M" / "dovecot-uidlist").write_bytes(b"3 V1 N1\n")
    (cur / "2.y:2,").symlink_to("/etc/passwd")
    paths = [str(tmp_path / "a.mbox"), str(tmp_path / "M")]
    result = run("import", address, *paths, variables=variables, cwd=tmp_path)
    assert result.returncode == 2
    assert b"--create" in result.stderr
    result = run("import", address, *paths, "--create", variables=variables, cwd=tmp_path)
    assert result.returncode == 1  # the link
    assert b"symbolic link" in result.stderr
    assert result.stdout.startswith(b"2 messages stored")
    result = run("import", address, *paths, "--json", variables=variables, cwd=tmp_path)
    told = json.loads(result.stdout)
    assert (result.returncode, told["new"], told["known"]) == (1, 0, 2)
    process(embedded, told["account_id"])
    found = {row["subject"]: row for row in embedded.messages(told["account_id"])}
    assert found["b"]["internal_date"].startswith("2018-02-01T12:00:00")
    assert sorted(places(told["account_id"]).values()) == [["Imported"], ["Sub"]]


def test_the_command_says_what_is_wrong(
    embedded: System, address: str, tmp_path: Path, variables: dict[str, str]
) -> None:
    path = tmp_path / "x.7z"
    path.write_bytes(b"7z\xbc\xaf\x27\x1c")
    add_archive(embedded, address)
    result = run("import", address, str(path), variables=variables, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == b"mailpoll: x.7z: is packed with 7z: unpack it first\n"
    result = run("import", address, "no-such-file", variables=variables, cwd=tmp_path)
    assert result.returncode == 2
    result = run("import", "no address", str(path), "--create", variables=variables, cwd=tmp_path)
    assert (result.returncode, result.stderr.startswith(b"mailpoll: address:")) == (2, True)


def test_a_dry_run_of_the_command_adds_no_account(
    embedded: System, address: str, tmp_path: Path, variables: dict[str, str]
) -> None:
    path = tmp_path / "x.eml"
    path.write_bytes(message("x"))
    result = run(
        "import", address, str(path), "--create", "--dry-run", variables=variables, cwd=tmp_path
    )
    assert result.returncode == 2
    assert embedded.get(ACCOUNTS)["items"] == []


def test_killing_the_command_anywhere_loses_and_doubles_nothing(
    embedded: System, address: str, tmp_path: Path, variables: dict[str, str]
) -> None:
    account = add_archive(embedded, address)
    mails = [message(str(number), "x" * 20_000) for number in range(300)]
    path = tmp_path / "x.mbox"
    path.write_bytes(archive("mbox", mails))
    command = [sys.executable, "-m", "mailpoll", "import", address, str(path)]
    environ = clean({**variables, "MAILPOLL_BATCH_MESSAGES": "10"})
    for pause in (0.8, 1.2):
        process_ = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.DEVNULL)
        time.sleep(pause)
        os.kill(process_.pid, signal.SIGKILL)
        process_.wait()
    result = subprocess.run(command, cwd=tmp_path, env=environ, check=False, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert raws(account) == sorted(mails)
    process(embedded, account)
    assert download(embedded, account, "mbox").count(b"@mailpoll.invalid") == 300
    assert len(dates(account)) == 300


def test_a_path_that_is_neither_file_nor_directory(embedded: System, address: str) -> None:
    account = add_archive(embedded, address)
    with pytest.raises(Unreadable, match="no file"):
        intake.run(account_row(account), [Path("/dev/null")])
