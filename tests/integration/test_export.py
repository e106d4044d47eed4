"""Mail out: downloads, jobs, and the ``mailpoll export`` command."""

import hashlib
import json
import mailbox
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from mailpoll import accounts, actors, database, faults, runtime
from mailpoll.archives import Selection, contents, intake, jobs, selection, writing
from mailpoll.blobs import StoreUnavailable
from mailpoll.models import AuditEvent, EmailExport, EmailExportPart
from tests.integration.archived import (
    ACCOUNTS,
    EXPORTS,
    FORMATS,
    SUFFIXES,
    add_archive,
    dates,
    download,
    environment,
    fill,
    finished,
    manifest,
    places,
    process,
    raws,
    upload,
)
from tests.integration.rows import account_row, blobs, counts
from tests.integration.system import System, message
from tests.integration.test_cli import run
from tests.integration.test_flags import client
from tests.security.test_api_keys import client_of, new_key
from tests.unit.test_archives import NASTY

MISSING = "00000000-0000-4000-8000-000000000000"


def actions() -> list[str]:
    with database.connected():
        return [row.action for row in AuditEvent.select().order_by(AuditEvent.id)]


def make(system: System, account: str, kind: str = "zip", **more: Any) -> Any:
    """A finished export of the job."""
    export = system.post(EXPORTS, 202, account_id=account, format=kind, **more)
    return finished(system, export["id"])


def fetch(system: System, export: str) -> bytes:
    answer = system.api.simulate_get(f"{EXPORTS}/{export}/download")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-length"] == str(len(answer.content))
    return answer.content


# --- what comes out


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_imported_elsewhere_is_the_same_to_the_byte(
    system: System, address: str, tmp_path: Path, kind: str
) -> None:
    account, other = add_archive(system, address), add_archive(system, f"x{address}")
    fill(system, tmp_path, account, NASTY, folder="Sent/2026")
    fill(system, tmp_path, account, [message("in the inbox")], folder="INBOX")
    data = download(system, account, kind)
    tally = upload(system, other, data, name=f"all{SUFFIXES[kind]}")
    assert (tally["new"], tally["left_out"]) == (len(set(NASTY)) + 1, 0)
    assert raws(other) == raws(account)
    if kind != "mbox":
        assert places(other) == places(account)
        assert dates(other) == dates(account)
    process(system, other)


def test_polled_mail_and_its_folders_come_out(system: System, address: str) -> None:
    system.dovecot.deliver(address, message("one"))
    account = system.add_account(address)
    system.poll_and_process(account)
    data = download(system, account, "zip")
    with zipfile.ZipFile(BytesIO(data)) as opened:
        assert opened.testzip() is None
        (name,) = [name for name in opened.namelist() if name.endswith(".eml")]
        assert opened.read(name) == message("one")
    (line,) = manifest("zip", data)
    assert line["path"] == name
    assert name.startswith("INBOX/")
    assert line["sha256"] == hashlib.sha256(message("one")).hexdigest()
    assert (line["folders"], line["size"]) == (["INBOX"], len(message("one")))
    assert line["internal_date"] == dates(account)[line["sha256"]].isoformat()


@pytest.mark.parametrize("kind", [*FORMATS, "manifest"])
def test_an_empty_mailbox_is_an_empty_archive(embedded: System, address: str, kind: str) -> None:
    account = add_archive(embedded, address)
    data = download(embedded, account, kind)
    if kind == "zip":
        with zipfile.ZipFile(BytesIO(data)) as opened:
            assert opened.namelist() == []
    elif kind == "maildir":
        assert data == bytes(1_024)
    else:
        assert data == b""
    if kind in ("zip", "maildir"):
        tally = upload(embedded, account, data, name=f"x{SUFFIXES[kind]}")
        assert (tally["new"], tally["left_out"]) == (0, 0)


def test_a_download_is_of_what_was_chosen(system: System, address: str, tmp_path: Path) -> None:
    account = add_archive(system, address)
    early = message("early").replace(b"23 Nov 2026", b"23 Nov 2020")
    fill(system, tmp_path, account, [early, message("late")], folder="A")
    fill(system, tmp_path, account, [message("other")], folder="B")

    def subjects(**query: str) -> list[str]:
        lines = manifest("manifest", download(system, account, "manifest", **query))
        known = {hashlib.sha256(one).hexdigest(): one for one in raws(account)}
        found = [known[line["sha256"]].partition(b"Subject: ")[2] for line in lines]
        return [one.partition(b"\r\n")[0].decode() for one in found]

    assert subjects() == ["early", "late", "other"]
    assert subjects(folder="A") == ["early", "late"]
    assert subjects(folder="none") == []
    assert subjects(since="2026-01-01T00:00:00Z") == ["late", "other"]
    assert subjects(until="2026-01-01T00:00:00Z") == ["early"]
    assert subjects(folder="A", since="2026-01-01T00:00:00Z") == ["late"]


def test_any_ids_can_be_written_out(system: System, address: str, tmp_path: Path) -> None:
    """What a search finds goes out in its order; what is another account's does not."""
    account, other = add_archive(system, address), add_archive(system, f"x{address}")
    fill(system, tmp_path, account, [message(str(one)) for one in range(4)])
    fill(system, tmp_path, other, [message("foreign")])
    ids = [row["id"] for row in system.messages(account)]
    foreign = [row["id"] for row in system.messages(other)]
    chosen = [ids[2], *foreign, ids[0], 2**62, ids[2]]
    found = selection.of_ids(account_row(account), iter(chosen))
    assert [one.id for one in found] == [ids[2], ids[0], ids[2]]
    export = make(system, account, "manifest", message_ids=chosen)
    lines = manifest("manifest", fetch(system, export["id"]))
    assert [line["id"] for line in lines] == [ids[2], ids[0]]


def test_downloads_are_written_down_and_need_a_key_for_reading(
    embedded: System, address: str, tmp_path: Path
) -> None:
    account = add_archive(embedded, address)
    fill(embedded, tmp_path, account, [message("x")])
    reader = client_of(embedded, new_key(embedded)["token"])
    assert reader.simulate_get(f"{ACCOUNTS}/{account}/export").status_code == 200
    job = {"account_id": account, "format": "mbox"}
    assert reader.simulate_post(EXPORTS, json=job).status_code == 403
    assert reader.simulate_post(f"{ACCOUNTS}/{account}/import", body=b"x").status_code == 403
    export = make(embedded, account)
    assert reader.simulate_get(f"{EXPORTS}/{export['id']}/download").status_code == 200
    assert reader.simulate_delete(f"{EXPORTS}/{export['id']}").status_code == 403
    assert embedded.api.simulate_delete(f"{EXPORTS}/{export['id']}").status_code == 204
    assert actions()[-4:] == ["account.export", "export.create", "export.download", "export.delete"]


def test_an_archive_is_only_a_download(embedded: System, address: str) -> None:
    account = add_archive(embedded, address)
    answer = embedded.api.simulate_get(f"{ACCOUNTS}/{account}/export?format=zip")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == f'attachment; filename="{account}.zip"'
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"


@pytest.mark.parametrize(
    ("query", "field"),
    [("format=pst", "format"), ("since=yesterday", "since"), ("unknown=1", "unknown")],
)
def test_a_wrong_query_names_its_field(
    embedded: System, address: str, query: str, field: str
) -> None:
    account = add_archive(embedded, address)
    answer = embedded.api.simulate_get(f"{ACCOUNTS}/{account}/export?{query}")
    assert answer.status_code == 422
    assert [one["field"] for one in answer.json["errors"]] == [field]


@pytest.mark.leaves_damage
@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_message_is_named_and_the_others_come(
    system: System, address: str, tmp_path: Path, kind: str
) -> None:
    account = add_archive(system, address)
    fill(system, tmp_path, account, [message("good"), message("lost"), message("fine")])
    lost = hashlib.sha256(message("lost")).hexdigest()
    runtime.storage().delete([f"{account}/{lost[:2]}/{lost}"], runtime.storage().primary_type)
    if kind == "mbox":  # which has no place to say so
        with pytest.raises(writing.Damaged):
            download(system, account, kind)
    else:
        (line,) = [one for one in manifest(kind, download(system, account, kind)) if "error" in one]
        assert (line["sha256"], line["path"]) == (lost, None)
        assert "missing" in line["error"]
    export = make(system, account, kind)
    assert (export["messages"], export["unreadable"], export["state"]) == (2, 1, "done")


def test_a_store_that_is_away_is_an_answer_with_words(
    system: System, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = add_archive(system, address)
    fill(system, tmp_path, account, [message("x")])

    def refuse(*_: Any) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(runtime.storage(), "open", refuse)
    answer = system.api.simulate_get(f"{ACCOUNTS}/{account}/export")
    assert answer.status_code == 503
    assert "object store" in answer.json["detail"]


# --- jobs


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PART_MESSAGES", 3)


@pytest.mark.parametrize("kind", [*FORMATS, "manifest"])
@pytest.mark.usefixtures("small_parts")
def test_a_job_makes_the_same_archive_in_parts(
    system: System, address: str, tmp_path: Path, kind: str
) -> None:
    account = add_archive(system, address)
    fill(system, tmp_path, account, NASTY)
    export = make(system, account, kind)
    assert export["state"] == "done"
    assert export["messages"] == export["expected"] == len(set(NASTY))
    data = fetch(system, export["id"])
    assert len(data) == export["bytes"]
    if kind == "manifest":
        assert len(manifest(kind, data)) == len(set(NASTY))
    else:
        other = add_archive(system, f"x{address}")
        upload(system, other, data, name=f"all{SUFFIXES[kind]}")
        assert raws(other) == raws(account)
        process(system, other)
    if kind == "zip":
        assert zipfile.ZipFile(BytesIO(data)).testzip() is None


@pytest.mark.usefixtures("small_parts")
def test_an_export_goes_on_where_its_worker_died(
    system: System, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = add_archive(system, address)
    fill(system, tmp_path, account, NASTY)
    export = jobs.create(account_row(account), "zip", Selection())
    whole = b"".join(jobs.content([]))
    steps, killed = 0, 0

    def die(point: str) -> None:
        nonlocal killed
        if point in ("part-durable", "before-commit") and steps % 2 and killed < 4:
            killed += 1
            raise KeyboardInterrupt(point)

    monkeypatch.setattr(faults, "point", die)
    more = True
    while more:
        steps += 1
        try:
            more = jobs.step(export.id)
        except KeyboardInterrupt:
            with database.transaction():  # its lease runs out
                EmailExport.update(lease_until=None).execute()
    assert killed == 4
    data = fetch(system, export.uuid)
    assert whole == b""
    with zipfile.ZipFile(BytesIO(data)) as opened:
        assert opened.testzip() is None
        mails = [opened.read(one) for one in opened.namelist() if one.endswith(".eml")]
    assert sorted(mails) == raws(account)


@pytest.mark.usefixtures("small_parts")
def test_a_worker_that_comes_back_late_writes_nothing(
    system: System, address: str, tmp_path: Path
) -> None:
    account = add_archive(system, address)
    fill(system, tmp_path, account, NASTY)
    export = jobs.create(account_row(account), "maildir", Selection())
    late = jobs._take(export.id)
    assert late is not None
    with database.transaction():
        EmailExport.update(lease_until=None).execute()
    while jobs.step(export.id):
        pass
    with pytest.raises(jobs.Lost):
        jobs._make_part(late)
    data = fetch(system, export.uuid)
    assert len(manifest("maildir", data)) == len(set(NASTY))


def test_mail_that_comes_later_is_not_in_it(system: System, address: str, tmp_path: Path) -> None:
    account = add_archive(system, address)
    fill(system, tmp_path, account, [message("first")])
    export = jobs.create(account_row(account), "manifest", Selection())
    fill(system, tmp_path, account, [message("second")], folder="B")
    while jobs.step(export.id):
        pass
    assert len(manifest("manifest", fetch(system, export.uuid))) == 1


@pytest.mark.usefixtures("small_parts")
def test_a_part_that_comes_after_the_removal_is_removed_too(
    system: System, address: str, tmp_path: Path
) -> None:
    account = add_archive(system, address)
    fill(system, tmp_path, account, NASTY)
    before = sorted(blobs(account))
    export = jobs.create(account_row(account), "zip", Selection())
    late = jobs._take(export.id)
    assert late is not None
    jobs.remove(late)
    with pytest.raises(jobs.Lost):
        jobs._make_part(late)
    assert sorted(blobs(account)) == before


def test_the_sweep_finds_an_export_that_redis_lost(system: System, address: str) -> None:
    account = add_archive(system, address)
    export = jobs.create(account_row(account), "mbox", Selection())
    actors.sweep.fn()
    assert finished(system, export.uuid)["state"] == "done"


@pytest.mark.usefixtures("small_parts")
def test_an_export_is_removed_when_it_is_over(system: System, address: str, tmp_path: Path) -> None:
    account = add_archive(system, address)
    fill(system, tmp_path, account, NASTY)
    before = sorted(blobs(account))
    export, twin = make(system, account), make(system, account)
    assert len(blobs(account)) > len(before)
    with database.transaction():
        EmailExport.update(expires_at=database.now() - timedelta(seconds=1)).where(
            EmailExport.uuid == export["id"]
        ).execute()
    url = f"{EXPORTS}/{export['id']}"
    assert system.api.simulate_get(f"{url}/download").status_code == 409
    actors.expire_exports.fn()
    assert system.api.simulate_get(url).status_code == 404
    fetch(system, twin["id"])
    assert system.api.simulate_delete(f"{EXPORTS}/{twin['id']}").status_code == 204
    assert sorted(blobs(account)) == before
    assert counts().get("email_export_parts") is None


def test_one_that_is_not_done_cannot_be_downloaded(system: System, address: str) -> None:
    account = add_archive(system, address)
    export = system.post(EXPORTS, 202, account_id=account)
    answer = system.api.simulate_get(f"{EXPORTS}/{export['id']}/download")
    assert answer.status_code == 409
    assert "running" in answer.json["detail"]
    assert system.api.simulate_get(f"{EXPORTS}/{MISSING}/download").status_code == 404
    system.post(EXPORTS, 404, account_id=MISSING)
    problem = system.post(EXPORTS, 422, account_id=account, folder="A", message_ids=[1])
    assert "message_ids" in problem["detail"]


def test_exports_are_listed_and_limited(system: System, address: str) -> None:
    account = add_archive(system, address)
    made = [system.post(EXPORTS, 202, account_id=account)["id"] for _ in range(5)]
    problem = system.post(EXPORTS, 409, account_id=account)
    assert "MAILPOLL_EXPORT_LIMIT" in problem["detail"]
    first = system.get(EXPORTS, limit=3)
    second = system.get(EXPORTS, limit=3, cursor=first["next"])
    assert [one["id"] for one in (*first["items"], *second["items"])] == made[::-1]


@pytest.mark.usefixtures("small_parts")
def test_exports_go_with_their_account(system: System, address: str, tmp_path: Path) -> None:
    account = add_archive(system, address)
    fill(system, tmp_path, account, NASTY)
    done = make(system, account)
    unfinished = jobs.create(account_row(account), "zip", Selection())
    jobs.step(unfinished.id)
    job = accounts.delete(account)
    assert job
    assert system.api.simulate_get(f"{EXPORTS}/{done['id']}").status_code == 404
    assert jobs.step(unfinished.id) is False
    actors.delete_account.fn(job.id)
    receipt = system.get(f"/admin/delete-jobs/{job.uuid}")
    assert receipt["rows"]["email_exports"] == 2
    assert receipt["rows"]["email_export_parts"] > 2
    assert receipt["scan"]["empty"] is True
    assert blobs(account) == []


def test_a_part_whose_put_fails_leaves_nothing_of_a_deleted_account(
    system: System, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = add_archive(system, address)
    fill(system, tmp_path, account, NASTY)
    export = jobs.create(account_row(account), "zip", Selection())
    put = runtime.storage().put

    def fail(new: Any) -> None:
        job = accounts.delete(account)
        assert job
        actors.delete_account.fn(job.id)
        put(new)
        assert len(blobs(account)) == 1
        raise StoreUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(runtime.storage(), "put", fail)
        assert jobs.step(export.id) is False
    assert blobs(account) == []
    assert counts() == {"email_jobs": 1}


def test_parts_that_fell_back_are_moved_and_still_whole(
    system: System, address: str, tmp_path: Path
) -> None:
    if not runtime.storage().has_object_store:
        return
    account = add_archive(system, address)
    fill(system, tmp_path, account, [message("x")])
    export = make(system, account)
    rows = jobs.parts(jobs.find(export["id"]))  # type: ignore[arg-type]
    before = fetch(system, export["id"])
    storage = runtime.storage()
    for row in rows:
        with storage.open(row.storage_key, row.storage_type) as stream:
            data = stream.read()
        from mailpoll.blobs import NewBlob

        assert storage._fallback
        storage._fallback.put([NewBlob(row.storage_key, row.size, row.sha256, data)])
        storage._primary.delete([row.storage_key])
    with database.transaction():
        EmailExportPart.update(storage_type="local").where(
            EmailExportPart.directory == False  # noqa: E712
        ).execute()
    assert fetch(system, export["id"]) == before
    actors.drain_fallback.fn()
    assert {row.storage_type for row in jobs.parts(jobs.find(export["id"]))} == {"oss"}  # type: ignore[arg-type]
    assert fetch(system, export["id"]) == before


def test_an_export_with_a_lost_part_fails_and_says_so(
    system: System, address: str, tmp_path: Path
) -> None:
    from mailpoll import fsck

    account = add_archive(system, address)
    fill(system, tmp_path, account, [message("x")])
    export = make(system, account)
    (row, *_) = jobs.parts(jobs.find(export["id"]))  # type: ignore[arg-type]
    runtime.storage().delete([row.storage_key], row.storage_type)
    assert system.api.simulate_get(f"{EXPORTS}/{export['id']}").json["state"] == "done"
    found = list(fsck.check(account_row(account), fsck.Tally(), repair=True, offline=True))
    assert [(str(one.kind), str(one.outcome)) for one in found] == [("blob_missing", "repaired")]
    again = system.get(f"{EXPORTS}/{export['id']}")
    assert (again["state"], "lost" in again["error"]) == ("failed", True)


# --- the command


def export(
    variables: dict[str, str], tmp_path: Path, address: str, *more: str
) -> tuple[int, dict[str, Any]]:
    result = run("export", address, *more, "--json", variables=variables, cwd=tmp_path)
    text = result.stdout.decode()
    return result.returncode, json.loads(text) if text else {"error": result.stderr.decode()}


@pytest.fixture
def variables(embedded: System) -> dict[str, str]:
    return environment()


@pytest.fixture
def filled(embedded: System, address: str, tmp_path: Path) -> str:
    account = add_archive(embedded, address)
    fill(embedded, tmp_path, account, NASTY, folder="Sent")
    return account


def test_an_export_that_fails_leaves_the_one_before_with_its_manifest(
    embedded: System, tmp_path: Path, filled: str
) -> None:
    target, row = tmp_path / "mail.mbox", account_row(filled)
    entries = list(selection.entries(row, Selection(last_id=selection.newest_id(row))))
    writing.to_file("mbox", filled, entries, target)
    before = {path: path.read_bytes() for path in tmp_path.glob("mail.mbox*")}
    assert len(before) == 2
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in before)

    def until_the_store_is_away() -> Iterator[selection.Entry]:
        yield entries[0]
        raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        writing.to_file("mbox", filled, until_the_store_is_away(), target)
    assert {path: path.read_bytes() for path in tmp_path.glob("mail.mbox*")} == before


def test_days_begin_at_midnight_utc_wherever_the_command_runs(
    embedded: System, address: str, tmp_path: Path, variables: dict[str, str]
) -> None:
    embedded.dovecot.deliver(
        address, message("x"), received_at=datetime(2026, 2, 1, 3, tzinfo=UTC).timestamp()
    )
    embedded.poll_and_process(embedded.add_account(address))
    target = str(tmp_path / "day.mbox")
    day = ("--output", target, "--since", "2026-02-01", "--until", "2026-02-02")
    code, told = export({**variables, "TZ": "America/Los_Angeles"}, tmp_path, address, *day)
    assert (code, told["messages"]) == (0, 1)


def test_the_command_writes_a_directory_and_goes_on_with_it(
    embedded: System, address: str, tmp_path: Path, variables: dict[str, str], filled: str
) -> None:
    target = tmp_path / "out"
    options = ("--format", "maildir", "--output", str(target))
    code, first = export(variables, tmp_path, address, *options)
    assert (code, first["messages"], first["skipped"]) == (0, len(set(NASTY)), 0)
    with closing(mailbox.Maildir(target, create=False)) as box:
        sent = box.get_folder("Sent")
        assert sorted(map(sent.get_bytes, sent.keys())) == raws(filled)
    one = next((target / ".Sent" / "cur").iterdir())
    one.unlink()
    code, second = export(variables, tmp_path, address, *options)
    assert (code, second["messages"], second["skipped"]) == (0, 1, len(set(NASTY)) - 1)
    assert len((target / "manifest.jsonl").read_text().splitlines()) == len(set(NASTY))
    other = add_archive(embedded, f"x{address}")
    tally = intake.run(account_row(other), [target])
    assert (tally.new, tally.left_out) == (len(set(NASTY)), 0)
    assert raws(other) == raws(filled)
    assert places(other) == places(filled)
    process(embedded, other)


def test_a_directory_that_is_gone_on_with_has_each_message_once_and_whole(
    embedded: System, address: str, tmp_path: Path, variables: dict[str, str], filled: str
) -> None:
    target = tmp_path / "out"
    options = ("--format", "maildir", "--output", str(target))
    export(variables, tmp_path, address, *options)
    first, second, third = sorted((target / ".Sent" / "cur").iterdir())[:3]
    # A program that read it has set a flag, and two files are not what they were
    read = first.rename(first.with_name(f"{first.name}S"))
    content = second.read_bytes()
    second.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    third.write_bytes(b"")
    code, again = export(variables, tmp_path, address, *options)
    assert (code, again["messages"], again["skipped"]) == (0, 2, len(set(NASTY)) - 2)
    assert sorted(one.read_bytes() for one in (target / ".Sent" / "cur").iterdir()) == raws(filled)
    paths = [json.loads(line)["path"] for line in (target / "manifest.jsonl").open()]
    assert str(read.relative_to(target)) in paths
    assert all((target / path).is_file() for path in paths)


@pytest.mark.parametrize("kind", FORMATS)
def test_what_a_search_finds_comes_out_newest_first(
    system: System,
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr(selection, "PAGE", 2)
    monkeypatch.setattr(selection, "HITS", 3)
    monkeypatch.setattr(jobs, "PART_MESSAGES", 2)
    account, other = add_archive(system, address), add_archive(system, f"x{address}")
    wanted = [message(f"invoice {number}") for number in range(5)]
    for number, mail in enumerate(wanted):
        wanted[number] = mail.replace(b"23 Nov 2026", b"%02d Nov 2026" % (number + 1))
    fill(system, tmp_path, account, [*wanted, message("something else")], folder="A")
    fill(system, tmp_path, other, [message("invoice of another")], folder="B")
    digests = [hashlib.sha256(one).hexdigest() for one in reversed(wanted)]
    query = {"q": "subject:invoice"}
    lines = manifest("manifest", download(system, account, "manifest", **query))
    assert [line["sha256"] for line in lines] == digests
    export = make(system, account, kind, **query)
    assert (export["expected"], export["messages"]) == (None, 5)
    made = fetch(system, export["id"])
    if kind == "mbox":
        assert made == download(system, account, kind, **query)
    else:
        assert [line["sha256"] for line in manifest(kind, made)] == digests
    lines = manifest("manifest", download(system, account, "manifest", folder="B", **query))
    assert lines == []
    answer = system.api.simulate_get(
        f"{ACCOUNTS}/{account}/export", params={"q": "is:nonsense", "format": kind}
    )
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (422, "q")
    body = {"account_id": account, "format": kind, "q": "(", "folder": "A"}
    assert system.post(EXPORTS, 422, **body)["errors"][0]["field"] == "q"


def test_the_command_writes_what_a_search_finds(
    embedded: System, address: str, tmp_path: Path, variables: dict[str, str]
) -> None:
    account = add_archive(embedded, address)
    fill(embedded, tmp_path, account, [message("invoice"), message("other")])
    target = str(tmp_path / "found.mbox")
    code, done = export(variables, tmp_path, address, "--output", target, "--query", "invoice")
    assert (code, done["messages"]) == (0, 1)
    wrong = run(
        *("export", address, "--output", target, "--query", "is:nonsense"),
        variables=variables,
        cwd=tmp_path,
    )
    assert wrong.returncode != 0
    assert b"query: " in wrong.stderr


@pytest.mark.parametrize("kind", ["zip", "maildir"])
def test_flags_and_labels_come_out_and_in_again(
    system: System, address: str, tmp_path: Path, kind: str
) -> None:
    system.dovecot.deliver_many(address, [message("read"), message("unread")])
    with client(system, address) as session:
        session.add_flags([1], ["\\Seen", "\\Flagged", "work"])
    account = system.add_account(address, sync_flags=True)
    system.poll_and_process(account)
    data = download(system, account, kind)
    told = {line["sha256"]: line for line in manifest(kind, data)}
    read = told[hashlib.sha256(message("read")).hexdigest()]
    assert set(read["flags"]) == {"\\Seen", "\\Flagged", "work"}
    assert told[hashlib.sha256(message("unread")).hexdigest()]["flags"] == []
    if kind == "maildir":
        assert read["path"].endswith(":2,FS")
    other = add_archive(system, f"x{address}")
    upload(system, other, data, name=f"all{SUFFIXES[kind]}")
    process(system, other)
    for query, subject in {"is:unread": "unread", "label:work": "read"}.items():
        (hit,) = system.get("/admin/search", q=query, account=other)["items"]
        assert hit["subject"] == subject
    assert manifest(kind, download(system, other, kind))[0].keys() == read.keys()
    flags = {line["sha256"]: set(line["flags"]) for line in manifest(kind, data)}
    again = manifest(kind, download(system, other, kind))
    assert {line["sha256"]: set(line["flags"]) for line in again} == flags


def test_every_folder_flag_and_label_of_a_manifest_comes_in_however_many(
    system: System, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "ROWS", 5_000)
    account = add_archive(system, address)
    told = {
        "folders": [f"folder {number:03}" for number in range(150)],
        "flags": sorted(f"flag{number:02}" for number in range(20)),
        "labels": sorted(f"label{number:02}" for number in range(20)),
    }
    mails = [message(f"number {number}") for number in range(3)]
    (tmp_path / "box").mkdir()
    lines = []
    for number, mail in enumerate(mails):
        (tmp_path / "box" / f"{number}.eml").write_bytes(mail)
        lines.append(json.dumps({"sha256": hashlib.sha256(mail).hexdigest(), **told}))
    (tmp_path / "box" / "manifest.jsonl").write_text("\n".join(lines))
    commits: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(faults, "point", commits.append)
        intake.run(account_row(account), [tmp_path / "box"])
    assert commits.count("committed") == 3
    process(system, account)
    found = manifest("manifest", download(system, account, "manifest"))
    assert len(found) == 3
    for line in found:
        assert {name: sorted(line[name]) for name in told} == told


def test_a_maildir_of_others_tells_flags(embedded: System, address: str, tmp_path: Path) -> None:
    account = add_archive(embedded, address)
    for directory, name, subject in (
        ("cur", "1700000001.M1.host:2,S", "read"),
        ("cur", "1700000002.M2.host:2,", "unread"),
        ("new", "1700000003.M3.host", "new"),
    ):
        path = tmp_path / "box" / directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(message(subject))
    intake.run(account_row(account), [tmp_path / "box"])
    process(embedded, account)
    hits = embedded.get("/admin/search", q="is:unread", account=account)["items"]
    assert sorted(hit["subject"] for hit in hits) == ["new", "unread"]
    shown = {one["subject"]: one["flags"] for one in embedded.messages(account)}
    assert shown == {"read": ["\\Seen"], "unread": [], "new": []}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_command_writes_a_file(
    embedded: System,
    address: str,
    tmp_path: Path,
    variables: dict[str, str],
    filled: str,
    kind: str,
) -> None:
    target = tmp_path / f"out{SUFFIXES[kind]}"
    code, told = export(variables, tmp_path, address, "--format", kind, "--output", str(target))
    assert (code, told["messages"]) == (0, len(set(NASTY)))
    other = add_archive(embedded, f"x{address}")
    intake.run(account_row(other), [target])
    assert raws(other) == raws(filled)
    # The manifest of an mbox lies beside it.
    assert places(other) == places(filled)
    assert dates(other) == dates(filled)
    process(embedded, other)
    assert list(tmp_path.glob("*.part")) == []


def test_the_command_says_what_is_wrong(
    embedded: System, address: str, tmp_path: Path, variables: dict[str, str], filled: str
) -> None:
    code, told = export(variables, tmp_path, f"y{address}", "--output", "x.mbox")
    assert (code, told["error"]) == (2, f"mailpoll: there is no account y{address}\n")
    code, told = export(variables, tmp_path, address, "--output", "no/such/directory/x.mbox")
    assert code == 2
    assert "No such file" in told["error"]


# --- memory


def test_memory_stays_flat_however_many_messages(
    embedded: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times as many messages take no more memory."""
    account = add_archive(embedded, address)
    raw = message("x", "y" * 5_000)
    digest = hashlib.sha256(raw).hexdigest()
    entry = selection.Entry(
        1, digest, len(raw), database.now(), "local", "", ("A",), None, None, [1]
    )
    monkeypatch.setattr(contents, "read", lambda *_: raw)

    def peak(number: int) -> int:
        tracemalloc.start()
        try:
            for _ in writing.stream("zip", account, (entry for _ in range(number))):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    assert peak(10_000) < peak(1_000) + 1_500_000
