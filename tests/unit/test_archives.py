"""The formats by themselves: what is written can be read, by us and by others, to the byte."""

import hashlib
import io
import mailbox
import tarfile
import zipfile
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailpoll import spool
from mailpoll.archives import maildir, manifest, mbox
from mailpoll.archives.formats import FORMATS, Format
from mailpoll.archives.manifest import Manifest
from mailpoll.archives.reading import Found, Limits, Unreadable, read
from mailpoll.archives.selection import Entry
from mailpoll.archives.zips import BadZip, ZipReader, ZipWriter

WHEN = datetime(2026, 11, 23, 10, 0, 0, 123_456, tzinfo=UTC)
UUID = "00000000-0000-4000-8000-000000000000"
LIMIT = 300_000
LIMITS = Limits(UUID, LIMIT)

#: What line-based formats stumble over.
NASTY = [
    b"",
    b"\n",
    b"\r\n",
    b"\n\n\n",
    b"\r",
    b"a",
    b"a\r",
    b"a\n\r",
    b"a\r\n\r\nno line end",
    b"Subject: bare LF\n\nbody\n",
    b"Subject: CRLF\r\n\r\nbody\r\n\r\n",
    b"Subject: NUL\r\n\r\n\0\0\r\n",
    b"Subject: 8-bit\r\n\r\n\xff\xfe\xe4\r\n",
    b"From the begin\r\n",
    b"From x Mon Nov 23 10:00:00 2026\n\nFrom y Mon Nov 23 10:00:00 2026\n",
    b"A: b\r\n\r\n\r\nFrom a@b Mon Nov 23 10:00:00 2026\r\n>From b\r\n>>From c\r\n> From d\r\n",
    b"\n\nFrom a@b Mon Nov 23 10:00:00 2026\n\n",
    b">From \n>",
    b">" * 70_000 + b"From x\n",
    b">" * 65_536 + b"\n" + b">" * 65_535 + b"From x",
    b"x" * 65_536 + b"\n\nFrom a Mon Nov 23 10:00:00 2026\n",
    b"x" * 200_000,
    b"From" + b" " * 100,
    b"\n" + b">" * 65_534 + b"From ",
    bytes(range(256)) * 4,
]
PIECES = [
    b"From ",
    b">",
    b"\n",
    b"\r\n",
    b"\r",
    b"\0",
    b"\xff",
    b"x",
    b" Mon Nov 23 10:00:00 2026\n",
]
MAIL = st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(PIECES)).map(b"".join))


@pytest.fixture(autouse=True)
def spooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files go where the test's own are."""
    directory = tmp_path / "spool"
    directory.mkdir(mode=0o700)
    monkeypatch.setattr(spool, "directory", lambda: directory)
    return directory


def entry(number: int, content: bytes, folders: tuple[str, ...] = ("INBOX",)) -> Entry:
    digest = hashlib.sha256(content).hexdigest()
    return Entry(number, digest, len(content), WHEN, "local", "", folders, None, None, [number])


def archive(name: str, contents: Iterable[bytes]) -> bytes:
    """A whole archive in memory, with a piece of the manifest for each message."""
    form: Format = FORMATS[name]()
    made, members = [], 0
    for number, content in enumerate(contents, 1):
        one = entry(number, content)
        made += form.message(one, content)
        made += form.manifest(number, manifest.line(one, form.path(one)))
        members += 2
    records = form.take_records()
    made += form.end([records[:10], records[10:]], members)
    return b"".join(made)


def found(path: Path, limits: Limits = LIMITS, name: str | None = None) -> list[Found]:
    with closing(Manifest()) as lines:
        return list(read(path, limits, lines, name))


def contents(path: Path, limits: Limits = LIMITS) -> list[bytes]:
    taken = []
    for one in found(path, limits):
        assert one.content is not None, one.reason
        content = one.content if isinstance(one.content, bytes) else one.content.read_bytes()
        assert hashlib.sha256(content).hexdigest() == one.sha256
        assert one.size == len(content)
        taken.append(content)
    return taken


def reasons(path: Path, limits: Limits = LIMITS) -> dict[str, str]:
    return {one.source: one.reason for one in found(path, limits) if one.content is None}


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# --- round trips


@pytest.mark.parametrize("name", ["mbox", "zip", "maildir"])
def test_nasty_messages_come_back_to_the_byte(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / f"all.{name}", archive(name, NASTY))
    assert contents(path) == NASTY


@pytest.mark.parametrize("name", ["mbox", "zip", "maildir"])
@given(mails=st.lists(MAIL, max_size=6))
@settings(max_examples=150, deadline=None, suppress_health_check=[*HealthCheck])
def test_any_messages_come_back_to_the_byte(tmp_path: Path, name: str, mails: list[bytes]) -> None:
    path = write(tmp_path / f"some.{name}", archive(name, mails))
    assert contents(path) == mails


def test_the_same_messages_make_the_same_archive() -> None:
    for name in FORMATS:
        assert archive(name, NASTY) == archive(name, NASTY)


def test_other_programs_read_our_zip() -> None:
    with zipfile.ZipFile(io.BytesIO(archive("zip", NASTY))) as opened:
        assert opened.testzip() is None
        mails = [one for one in opened.infolist() if one.filename.endswith(".eml")]
        assert [opened.read(one) for one in mails] == NASTY
        assert mails[0].filename == "INBOX/20261123T100000-1.eml"
        assert mails[0].date_time == (2026, 11, 23, 10, 0, 0)


def test_other_programs_read_our_tar() -> None:
    with tarfile.open(fileobj=io.BytesIO(archive("maildir", NASTY))) as opened:
        mails = [one for one in opened.getmembers() if one.name.startswith("cur/")]
        read_back = [opened.extractfile(one) for one in mails if one.isfile()]
        assert [one.read() for one in read_back if one] == NASTY
        assert {one.name for one in opened if one.isdir()} == {"cur", "new", "tmp"}


def test_other_programs_read_our_mbox(tmp_path: Path) -> None:
    mails = [b"Subject: 1\n\nbody\nFrom here on\n", b"Subject: 2\n\n\nbody\n"]
    path = write(tmp_path / "x.mbox", archive("mbox", mails))
    with closing(mailbox.mbox(path)) as opened:
        read_back = [opened.get_bytes(key) for key in opened.keys()]  # noqa: SIM118
    assert read_back == [mails[0].replace(b"\nFrom ", b"\n>From "), mails[1]]


def test_python_writes_a_maildir_that_we_read(tmp_path: Path) -> None:
    box = mailbox.Maildir(tmp_path / "M")
    sub = box.add_folder("A.B")
    box.add(b"Subject: 1\n\nx\n")
    sub.add(mailbox.MaildirMessage(b"Subject: 2\n\ny\n"))
    by_folder = {one.folder: one.content for one in found(tmp_path / "M")}
    assert by_folder == {"INBOX": b"Subject: 1\n\nx\n", "A/B": b"Subject: 2\n\ny\n"}


def test_python_writes_an_mbox_that_we_read(tmp_path: Path) -> None:
    with closing(mailbox.mbox(tmp_path / "x")) as box:
        for number in range(3):
            box.add(f"Subject: {number}\n\nFrom here\n\nFrom there\n".encode())
    mails = [f"Subject: {number}\n\nFrom here\n\nFrom there\n".encode() for number in range(3)]
    assert contents(tmp_path / "x") == mails


def test_a_zip_with_more_than_65535_members() -> None:
    writer, made = ZipWriter(), io.BytesIO()
    for number in range(66_000):
        made.writelines(writer.member(f"{number}.eml", WHEN, b"x"))
    made.writelines(writer.end([writer.take_records()], 66_000))
    assert sum(1 for _ in ZipReader(made).members()) == 66_000
    with zipfile.ZipFile(made) as opened:
        assert len(opened.infolist()) == 66_000
        assert opened.read("65999.eml") == b"x"


def test_a_zip_beyond_four_gigabytes(tmp_path: Path) -> None:
    far = 5_000_000_000
    writer, path = ZipWriter(far), tmp_path / "sparse.zip"
    with path.open("wb") as file:
        file.truncate(far)
        file.seek(far)
        file.writelines(writer.member("a.eml", WHEN, b"Subject: far\n\n" * 10))
        file.writelines(writer.end([writer.take_records()], 1))
    with zipfile.ZipFile(path) as opened:
        assert opened.read("a.eml") == b"Subject: far\n\n" * 10
    with path.open("rb") as file:
        reader = ZipReader(file)
        (member,) = reader.members()
        assert b"".join(reader.content(member)) == b"Subject: far\n\n" * 10


# --- mbox


def test_a_line_that_is_no_begin_splits_nothing(tmp_path: Path) -> None:
    mail = b"Subject: x\n\nFrom now on\n\nFrom me to you\nFrom a Mon Nov 23 10:00:00 2026\nend\n"
    path = write(tmp_path / "x", b"From a@b Thu Feb  1 12:00:00 2018\n" + mail + b"\n")
    assert contents(path) == [mail]


@pytest.mark.parametrize(
    ("line", "date"),
    [
        (b"From a@b Thu Feb  1 12:00:00 2018", datetime(2018, 2, 1, 12, tzinfo=UTC)),
        (b"From - Thu Feb  1 12:00:00 2018\r", datetime(2018, 2, 1, 12, tzinfo=UTC)),
        (b"From 1@xxx Thu Feb 01 12:00:00 +0200 2018", datetime(2018, 2, 1, 10, tzinfo=UTC)),
        (b"From a@b Thu Feb  1 12:00:00 2018 -0500", datetime(2018, 2, 1, 17, tzinfo=UTC)),
        (b"From a@b  Thu Feb  1 12:00 2018", datetime(2018, 2, 1, 12, tzinfo=UTC)),
        (b"From a@b Thu Feb  1 12:00:00 CET 2018", datetime(2018, 2, 1, 12, tzinfo=UTC)),
        (b'From "a b"@c Thu Feb  1 12:00:00 2018', datetime(2018, 2, 1, 12, tzinfo=UTC)),
        (b"From a@b", None),
        (b"From Thu to Fri", None),
        (b"From a Thu Feb 99 12:00:00 2018", None),
        (b"From a Thu Feb 1 99:00:00 2018", None),
        (b"From a Thu Feb 1 12:00:00 0000", None),
        (b"From a Thu Jan 1 12:00:00 0001 +9999", None),
        (b"From " + b"x " * 1_000_000, None),
    ],
)
def test_the_line_before_a_message(line: bytes, date: datetime | None) -> None:
    assert mbox.date_of(line) == date


def test_a_length_in_a_header_is_not_believed(tmp_path: Path) -> None:
    first = b"Content-Length: 1000\n\nx\n"
    begin = b"From a@b Thu Feb  1 12:00:00 2018\n"
    path = write(tmp_path / "x", begin + first + b"\n" + begin + b"Subject: 2\n\n")
    assert contents(path) == [first, b"Subject: 2\n"]


def test_line_ends_of_dos(tmp_path: Path) -> None:
    begin = b"From a@b Thu Feb  1 12:00:00 2018\r\n"
    mails = [b"Subject: 1\r\n\r\nx\r\n", b"Subject: 2\r\n\r\ny\r\n"]
    path = write(tmp_path / "x", b"".join(begin + mail + b"\r\n" for mail in mails))
    assert contents(path) == mails


def test_the_older_dialect_keeps_what_was_quoted_before(tmp_path: Path) -> None:
    begin = b"From a@b Thu Feb  1 12:00:00 2018\n"
    path = write(tmp_path / "x", begin + b"A: b\n\n>From x\n>>From y\n")
    assert contents(path) == [b"A: b\n\nFrom x\n>From y\n"]
    older = Limits(UUID, LIMIT, quoted_once=True)
    assert contents(path, older) == [b"A: b\n\nFrom x\n>>From y\n"]


def test_what_a_damaged_file_leaves_unfinished_is_not_kept(tmp_path: Path, spooled: Path) -> None:
    class Damaged(io.BytesIO):
        def readline(self, size: int | None = -1) -> bytes:
            line = super().readline(size)
            if not line:
                raise Unreadable("it is cut")
            return line

    file = Damaged(b"From a@b Thu Feb  1 12:00:00 2018\n" + (b"x" * 999 + b"\n") * 3_000)
    with closing(Manifest()) as lines, pytest.raises(Unreadable):
        list(mbox.messages(file, UUID, 10_000_000, lines))
    assert list(spooled.iterdir()) == []


def test_what_macos_adds_to_a_zip_is_no_mail(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("mail/a.eml", b"Subject: 1\n\nx\n")
        file.writestr("__MACOSX/mail/._a.eml", b"\x00\x05\x16\x07" + b"\0" * 60)
        file.writestr("mail/._b.eml", b"\x00\x05\x16\x07" + b"\0" * 60)
    assert contents(tmp_path / "x.zip") == [b"Subject: 1\n\nx\n"]


def test_a_file_of_one_endless_line(tmp_path: Path) -> None:
    path = write(tmp_path / "x", b"From a@b Thu Feb  1 12:00:00 2018\n" + b"x" * 20_000_000)
    (reason,) = reasons(path).values()
    assert "too large" in reason


# --- limits and hostile files


@pytest.mark.parametrize("name", ["mbox", "zip", "maildir"])
def test_a_message_over_the_limit_is_named_and_the_others_come(
    tmp_path: Path, name: str, spooled: Path
) -> None:
    mails = [b"Subject: 1\n", b"Subject: large\n\n" + b"x" * LIMIT, b"Subject: 3\n"]
    path = write(tmp_path / f"x.{name}", archive(name, mails))
    assert [one.content for one in found(path) if one.content] == [mails[0], mails[2]]
    (reason,) = reasons(path).values()
    assert "MAILPOLL_MAX_MESSAGE_BYTES" in reason
    assert list(spooled.iterdir()) == []


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    taken = 0
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        for number in range(3):
            bomb.writestr(f"{number}.eml", b"Subject: x\n\n" + bytes(50_000_000))
    for one in found(tmp_path / "bomb.zip"):
        assert "too large" in one.reason
        taken += one.size
    assert taken < 3 * (LIMIT + 600_000)


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """A zip bomb without nesting: many members, one content (Fifield, WOOT 2019)."""
    writer = ZipWriter()
    body = b"".join(writer.member("a.eml", WHEN, b"Subject: x\n\n" * 10_000))
    record = writer.take_records()
    many = record * 1_000
    path = write(tmp_path / "x.zip", body + b"".join(writer.end([many], 1_000)))
    with pytest.raises(Unreadable, match="overlap"):
        found(path)


def test_an_archive_that_unpacks_to_far_more_than_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailpoll.archives.reading.LEAST", 1_000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        for number in range(100):
            bomb.writestr(f"{number}.eml", b"Subject: x\n\n" + bytes(200_000))
    with pytest.raises(Unreadable, match="far more"):
        found(tmp_path / "x.zip")


def test_archives_within_archives_are_not_opened(tmp_path: Path) -> None:
    inner = archive("zip", [b"Subject: x\n"])
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as outer:
        outer.writestr("inner.zip", inner)
        outer.writestr("inner", archive("maildir", [b"Subject: y\n"]))
        outer.writestr("a.eml", b"Subject: z\n")
        outer.writestr("picture.png", b"\x89PNG\r\n")
    assert [one.content for one in found(tmp_path / "x.zip") if one.content] == [b"Subject: z\n"]
    assert [one.split(",")[0] for one in reasons(tmp_path / "x.zip").values()] == [
        "is an archive within an archive",
        "is an archive within an archive",
        "is no message",
    ]


@pytest.mark.parametrize("name", ["../../etc/x.eml", "/etc/x.eml", "a/../../x.eml", "..\\x.eml"])
def test_a_name_that_climbs_is_only_a_name(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as outer:
        outer.writestr(name, b"Subject: x\n")
    before = set(tmp_path.rglob("*"))
    (one,) = found(tmp_path / "x.zip")
    assert one.content == b"Subject: x\n"
    assert one.folder in (None, "etc", "a")
    assert set(tmp_path.rglob("*")) == before


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    data = bytearray(archive("zip", [b"Subject: x\n"]))
    place = data.find(b"PK\x01\x02")
    data[place + 8] |= 1
    with pytest.raises(Unreadable, match="encrypted"):
        found(write(tmp_path / "x.zip", bytes(data)))


def test_links_are_not_followed(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret", b"Subject: secret\n")
    cur = write(tmp_path / "M/cur/1.a:2,", b"Subject: x\n").parent
    (cur / "2.b:2,").symlink_to(secret)
    (tmp_path / "M/.Sub").symlink_to(tmp_path)
    assert [one.content for one in found(tmp_path / "M") if one.content] == [b"Subject: x\n"]
    assert [one for one in reasons(tmp_path / "M").values() if "symbolic" in one] == [
        "is a symbolic link, which is not followed"
    ] * 2
    info = tarfile.TarInfo("cur/3")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(info)
    assert list(reasons(tmp_path / "x.tar").values()) == ["is a link or no plain file"]
    link = zipfile.ZipInfo("1.eml")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as outer:
        outer.writestr(link, "/etc/passwd")
    assert list(reasons(tmp_path / "x.zip").values()) == ["is no plain file"]


@pytest.mark.parametrize(
    ("begin", "word"),
    [
        (b"\x1f\x8b\x08rest", "gzip"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"\x89PNG\r\n\x1a\n", "is no mbox"),
        (b"PK\x03\x04rest", "no zip"),
        (b"", "is no mbox"),
    ],
)
def test_what_is_no_mail_is_refused(tmp_path: Path, begin: bytes, word: str) -> None:
    with pytest.raises(Unreadable, match=word):
        found(write(tmp_path / "upload", begin))


@pytest.mark.parametrize("name", ["zip", "maildir"])
@given(place=st.integers(0, 2_000), byte=st.integers(0, 255), cut=st.integers(0, 2_500))
@settings(max_examples=300, deadline=None, suppress_health_check=[*HealthCheck])
def test_a_damaged_archive_is_an_error_with_words(
    tmp_path: Path, name: str, place: int, byte: int, cut: int
) -> None:
    data = bytearray(archive(name, [b"Subject: 1\n\nx\n", b"Subject: 2\n\ny\n" * 20]))
    data[place % len(data)] = byte
    path = write(tmp_path / f"x.{name}", bytes(data[: len(data) - cut % 100]))
    try:
        found(path)
    except Unreadable as error:
        assert str(error)


def test_a_damaged_member_does_not_hold_up_the_others(tmp_path: Path) -> None:
    data = bytearray(archive("zip", [b"Subject: 1\n\nxyz" * 20, b"Subject: 2\n"]))
    place = data.find(b".eml") + 10
    data[place] ^= 0xFF
    path = write(tmp_path / "x.zip", bytes(data))
    assert [one.content for one in found(path) if one.content] == [b"Subject: 2\n"]
    assert "damaged" in next(iter(reasons(path).values()))


def test_a_member_that_ends_too_soon(tmp_path: Path) -> None:
    writer = ZipWriter()
    made = b"".join(writer.member("a.eml", WHEN, b"Subject: x\n" * 100))
    made += b"".join(writer.end([writer.take_records()], 1))
    with pytest.raises(BadZip):
        ZipReader(io.BytesIO(made[: len(made) // 2]))


def test_an_unknown_method_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_BZIP2) as outer:
        outer.writestr("a.eml", b"Subject: x\n" * 100)
    assert "method" in next(iter(reasons(tmp_path / "x.zip").values()))


def test_a_tar_with_an_endless_name_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x" * 200_000)
    data = info.tobuf(tarfile.PAX_FORMAT) + bytes(1_024)
    with pytest.raises(Unreadable, match="name"):
        found(write(tmp_path / "x.tar", data))


def test_a_manifest_of_nonsense_is_passed_over(tmp_path: Path) -> None:
    sha256 = hashlib.sha256(b"Subject: x\n").hexdigest()
    lines = [
        b"[]",
        b"nonsense",
        b'{"sha256": 5}',
        b'{"sha256": "' + sha256.encode() + b'", "folders": [1, "", "a\\u0000", "ok"], '
        b'"internal_date": "9999-99-99"}',
    ]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as outer:
        outer.writestr("manifest-00001.jsonl", b"\n".join(lines))
        outer.writestr("a.eml", b"Subject: x\n")
    with closing(Manifest()) as known:
        (one,) = read(tmp_path / "x.zip", LIMITS, known)
        assert known.folders(one.sha256) == ["ok"]
        assert known.date(one.sha256) is None


# --- names


@given(name=st.text(max_size=300))
@settings(deadline=None)
def test_a_folder_is_one_directory(name: str) -> None:
    directory = maildir.directory_of(name)
    assert "/" not in directory
    assert "\0" not in directory
    assert directory not in (".", "..")
    assert len(directory.encode()) <= 255
    one = entry(1, b"x", (name,))
    path = FORMATS["zip"]().path(one)
    assert path
    assert ".." not in path.split("/")


@pytest.mark.parametrize("name", ["Sent", "A/B", "Entwürfe", "日本/語", "a.b", "x &- y", "INBOX/A"])
def test_a_directory_says_its_folder(name: str) -> None:
    assert maildir.folder_of(maildir.directory_of(name)) == name


def test_mail_larger_than_memory_goes_through_files(tmp_path: Path, spooled: Path) -> None:
    big = b"Subject: big\n\n" + b"From x\n>From y\n" * 200_000
    one, source = entry(1, big), write(tmp_path / "raw", big)
    for name in ("mbox", "zip", "maildir"):
        form = FORMATS[name]()
        made = b"".join([*form.message(one, source), *form.end([form.take_records()], 1)])
        path = write(tmp_path / f"x.{name}", made)
        (taken,) = contents(path, Limits(UUID, 10_000_000))
        assert taken == big
