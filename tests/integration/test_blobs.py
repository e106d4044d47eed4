"""Blob stores against real files and a real S3 server, and storage through outages."""

import hashlib
import io
import os
import resource
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard

from mailpoll.blobs import (
    BlobCorrupt,
    BlobMissing,
    BlobStore,
    Form,
    LocalFiles,
    NewBlob,
    Storage,
    StorageType,
    StoreUnavailable,
    blob_key,
    s3,
    storage_from_url,
)
from mailpoll.blobs.circuit import Circuit
from mailpoll.blobs.s3 import S3
from tests.servers.process import free_ports
from tests.servers.scripted_s3 import Answer, BlackHole, ScriptedS3
from tests.servers.seaweed import Seaweed


def new_account() -> str:
    return str(uuid.uuid4())


def new_blob(account: str, content: bytes | None = None, source: Path | None = None) -> NewBlob:
    content = os.urandom(1000) if content is None else content
    sha256 = hashlib.sha256(content).hexdigest()
    if source is not None:
        source.write_bytes(content)
    return NewBlob(blob_key(account, sha256), len(content), sha256, source or content)


def content_of(store: BlobStore, blob: NewBlob) -> bytes:
    with store.open(blob.key) as stream:
        return stream.read()


def keys(store: BlobStore, account: str) -> list[str]:
    return [found.key for found in store.list_account(account)]


def s3_store(endpoint: str) -> S3:
    return S3(endpoint, "access", "secret", "bucket", secure=False, region="us-east-1")


def sealing() -> Form:
    """A form that encrypts with the same key for every account."""
    return Form(data_key=lambda _: bytes(range(32)), encrypt=True)


@pytest.fixture(params=["local", "s3", "local sealed", "s3 sealed"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    kind, _, sealed = request.param.partition(" ")
    form = sealing() if sealed else Form()
    if kind == "local":
        return LocalFiles(tmp_path / "blobs", form)
    seaweed: Seaweed = request.getfixturevalue("seaweed")
    access = (seaweed.endpoint, seaweed.access_key, seaweed.secret_key)
    return S3(*access, "blobs", secure=False, form=form)


@pytest.fixture
def account() -> str:
    return new_account()


# --- what every store does


@pytest.mark.parametrize("size", [0, 1, 1000, 3_000_000])
@pytest.mark.parametrize("spooled", [False, True])
def test_a_blob_comes_back_as_it_was(
    store: BlobStore, account: str, tmp_path: Path, size: int, spooled: bool
) -> None:
    content = os.urandom(size)
    blob = new_blob(account, content, tmp_path / "spooled" if spooled else None)

    store.put([blob])

    assert content_of(store, blob) == content
    assert store.exists(blob.key)
    if spooled:
        assert (tmp_path / "spooled").read_bytes() == content


def test_a_large_batch_is_stored_whole(store: BlobStore, account: str) -> None:
    blobs = [new_blob(account) for _ in range(300)]
    store.put(blobs)
    assert sorted(keys(store, account)) == sorted(blob.key for blob in blobs)


def test_putting_again_changes_nothing(store: BlobStore, account: str) -> None:
    blob = new_blob(account)
    store.put([blob, blob])
    store.put([blob])
    assert content_of(store, blob) == blob.source
    assert keys(store, account) == [blob.key]


def test_threads_may_put_the_same_blob_at_once(store: BlobStore, account: str) -> None:
    blobs = [new_blob(account) for _ in range(20)]
    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(store.put, blobs) for _ in range(8)]:
            done.result()
    assert all(content_of(store, blob) == blob.source for blob in blobs)


def test_threads_share_what_compresses(
    tmp_path: Path, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each compressor keeps megabytes, and a poller has many threads."""
    made: list[int] = []
    make = zstandard.ZstdCompressor
    monkeypatch.setattr(
        zstandard, "ZstdCompressor", lambda *a, **k: made.append(1) or make(*a, **k)
    )
    store = LocalFiles(tmp_path)

    for _ in range(5):
        thread = threading.Thread(target=store.put, args=([new_blob(account)],))
        thread.start()
        thread.join()

    assert len(made) == 1


def test_putting_nothing_is_fine(store: BlobStore) -> None:
    store.put([])


def test_a_missing_blob_is_told_from_an_outage(store: BlobStore, account: str) -> None:
    key = new_blob(account).key
    assert not store.exists(key)
    with pytest.raises(BlobMissing):
        store.open(key)


def test_a_source_that_is_not_what_its_key_says_is_refused(
    store: BlobStore, account: str, tmp_path: Path
) -> None:
    # Given a spooled file that lost its end, one with a flipped bit, and a key of something else
    cut = new_blob(account, source=tmp_path / "cut")
    os.truncate(tmp_path / "cut", 999)
    flipped = new_blob(account, source=tmp_path / "flipped")
    content = bytearray((tmp_path / "flipped").read_bytes())
    content[500] ^= 1
    (tmp_path / "flipped").write_bytes(content)
    honest = new_blob(account)
    misnamed = NewBlob(new_blob(account).key, honest.size, honest.sha256, honest.source)

    # Then none of them is stored
    for blob in (cut, flipped, misnamed):
        with pytest.raises(BlobCorrupt):
            store.put([blob])
    assert keys(store, account) == []


def test_a_stream_can_be_read_in_part_and_closed(store: BlobStore, account: str) -> None:
    blob = new_blob(account, os.urandom(3_000_000))
    store.put([blob])
    for _ in range(40):  # more often than there are connections
        stream = store.open(blob.key)
        assert stream.read(10) == bytes(blob.source)[:10]
        stream.close()
        stream.close()
    assert content_of(store, blob) == blob.source


def test_deleting_takes_what_there_is(store: BlobStore, account: str) -> None:
    kept, deleted, never_there = (new_blob(account) for _ in range(3))
    store.put([kept, deleted])

    for _ in range(2):
        store.delete(iter([deleted.key, never_there.key]))

    assert keys(store, account) == [kept.key]


def test_deleting_an_account_leaves_the_others(store: BlobStore, account: str) -> None:
    other = new_blob(new_account())
    store.put([other, *(new_blob(account) for _ in range(30))])

    assert store.delete_account(account) == 30
    assert store.delete_account(account) == 0

    assert keys(store, account) == []
    assert store.exists(other.key)


def test_an_account_can_come_back_after_its_deletion(store: BlobStore, account: str) -> None:
    blob = new_blob(account)
    store.put([blob])
    store.delete_account(account)
    store.put([blob])
    assert content_of(store, blob) == blob.source


def test_a_working_store_passes_its_check(store: BlobStore) -> None:
    store.check()  # before anything has made the bucket, too
    store.put([new_blob(new_account())])
    store.check()


# --- local files


@pytest.fixture
def local(tmp_path: Path) -> LocalFiles:
    return LocalFiles(tmp_path / "blobs")


def files_under(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if not path.is_dir()]


def test_only_our_user_can_read_local_files(
    local: LocalFiles, account: str, tmp_path: Path
) -> None:
    local.put([new_blob(account)])
    modes = {path.stat().st_mode & 0o777 for path in files_under(tmp_path / "blobs")}
    directories = [p for p in (tmp_path / "blobs").rglob("*") if p.is_dir()] + [tmp_path / "blobs"]
    assert modes == {0o600}
    assert {path.stat().st_mode & 0o777 for path in directories} == {0o700}


def test_a_process_killed_while_it_checks_leaves_nothing(
    local: LocalFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "unlink", lambda *_, **__: None)  # it never comes to that

    local.check()

    assert files_under(tmp_path) == []


@pytest.mark.parametrize("level", ["account", "digits", "file"])
def test_a_planted_symlink_is_not_followed(
    local: LocalFiles, account: str, tmp_path: Path, level: str
) -> None:
    # Given somebody else's file, and a link to it where a blob or a directory of it belongs
    blob = new_blob(account)
    victim = tmp_path / "victim"
    path = local.path(blob.key)
    if level == "file":
        victim.write_bytes(b"precious")
        path.parent.mkdir(parents=True)
        path.symlink_to(victim)
    else:
        victim.mkdir()
        link = path.parent if level == "digits" else path.parent.parent
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(victim)

    # Then nothing is read through it
    with pytest.raises(StoreUnavailable):
        local.open(blob.key)

    # And nothing is written or deleted through it
    if level == "file":
        local.put([blob])
        assert content_of(local, blob) == blob.source
        assert victim.read_bytes() == b"precious"
    else:
        with pytest.raises(StoreUnavailable):
            local.put([blob])
        (victim / "precious").touch()
        local.delete_account(account)
        assert [path.name for path in victim.iterdir()] == ["precious"]


def cut(content: bytes) -> bytes:
    return content[:10]


def flip(content: bytes) -> bytes:
    return content[:500] + bytes([content[500] ^ 1]) + content[501:]


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_file_is_written_anew(
    local: LocalFiles, account: str, damage: Callable[[bytes], bytes]
) -> None:
    blob = new_blob(account)
    local.put([blob])
    path = local.path(blob.key)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BlobCorrupt), local.open(blob.key) as stream:
        stream.read()
    local.put([blob])
    assert content_of(local, blob) == blob.source


@pytest.mark.parametrize("size", [0, 1, 40_000, 3_000_000])
@pytest.mark.parametrize("spooled", [False, True])
def test_the_zstd_program_makes_a_blob_of_a_local_file(
    local: LocalFiles, account: str, tmp_path: Path, size: int, spooled: bool
) -> None:
    content = (b"Subject: readable\r\n\r\n" + os.urandom(size // 2)).ljust(size, b".")[:size]
    blob = new_blob(account, content, tmp_path / "spooled" if spooled else None)
    local.put([blob])
    unpacked = subprocess.run(
        ["zstd", "-d", "--stdout", str(local.path(blob.key))], capture_output=True, check=True
    )
    assert unpacked.stdout == content
    shown = subprocess.run(
        ["zstd", "-l", "-v", str(local.path(blob.key))], capture_output=True, check=True, text=True
    )
    assert "XXH64" in shown.stdout
    assert zstandard.frame_content_size(local.path(blob.key).read_bytes()) == size


def test_a_full_disk_is_unavailability_and_leaves_nothing(
    local: LocalFiles, account: str, tmp_path: Path
) -> None:
    # Given a limit on file sizes, which fails writes as a full disk does
    program = """
import os, resource, signal, sys
from pathlib import Path
from mailpoll.blobs import LocalFiles, NewBlob, StoreUnavailable, blob_key
import hashlib
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
content = os.urandom(1_000_000)
sha256 = hashlib.sha256(content).hexdigest()
store = LocalFiles(Path(sys.argv[1]))
small = b"small"
blobs = [NewBlob(blob_key(sys.argv[2], hashlib.sha256(c).hexdigest()), len(c),
                 hashlib.sha256(c).hexdigest(), c) for c in (small, content)]
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
try:
    store.put(blobs)
except StoreUnavailable:
    sys.exit(7)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "blobs"), account], check=False
    )

    # Then the put fails as a whole and no file is left, temporary ones included
    assert ended.returncode == 7
    assert files_under(tmp_path / "blobs") == []


def test_too_many_open_files_is_unavailability(local: LocalFiles, account: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 4, hard))
    try:
        with pytest.raises(StoreUnavailable):
            local.put([new_blob(account) for _ in range(50)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert keys(local, account) == []
    local.put([new_blob(account)])


def test_a_killed_put_leaves_no_partial_blob(tmp_path: Path, account: str) -> None:
    # Given a process that puts blobs of 200 KB without pause
    program = """
import hashlib, os, sys
from pathlib import Path
from mailpoll.blobs import LocalFiles, NewBlob, blob_key
store = LocalFiles(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    contents = [os.urandom(200_000) for _ in range(20)]
    hashes = [hashlib.sha256(c).hexdigest() for c in contents]
    store.put([NewBlob(blob_key(sys.argv[2], h), len(c), h, c) for c, h in zip(contents, hashes)])
"""
    root = tmp_path / "blobs"
    for round_ in range(40):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(root), account], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()

        # When it is killed at some moment
        time.sleep(0.05 + 0.013 * round_)
        process.kill()
        process.communicate()
        store = LocalFiles(root)
        survivors = keys(store, account)
        if survivors and round_ >= 7:  # a slow machine has none for longer
            break

    # Then every blob that can be seen is whole
    assert survivors
    for key in survivors:
        with store.open(key) as stream:
            assert hashlib.file_digest(stream, "sha256").hexdigest() == key.rpartition("/")[2]  # type: ignore[arg-type]
    # And deleting the account takes temporary files of the dead with it
    store.delete_account(account)
    assert files_under(root) == []


def test_temporary_files_of_the_dead_are_removed_at_start(tmp_path: Path, account: str) -> None:
    LocalFiles(tmp_path)
    old, fresh = (tmp_path / ".tmp" / f"{account}.{name}" for name in ("old", "fresh"))
    for file in (old, fresh):
        file.touch()
    os.utime(old, (time.time() - 25 * 3600,) * 2)

    LocalFiles(tmp_path)

    assert not old.exists()
    assert fresh.exists()


def test_deleting_an_account_wins_over_a_put_under_way(local: LocalFiles, account: str) -> None:
    # Given a thread that goes on putting until it is told to stop
    stop = threading.Event()

    def keep_putting() -> None:
        while not stop.is_set():
            try:
                local.put([new_blob(account) for _ in range(5)])
            except StoreUnavailable:
                continue

    putter = threading.Thread(target=keep_putting)
    putter.start()

    # When the account is deleted again and again, it either works or asks to be called again
    try:
        for _ in range(30):
            try:
                local.delete_account(account)
            except StoreUnavailable:
                continue
    finally:
        stop.set()
        putter.join()

    # Then at the end nothing is left
    local.delete_account(account)
    assert keys(local, account) == []


# --- S3


@pytest.mark.parametrize("place", ["s3", "file"])
@pytest.mark.parametrize("sealed", ["", "sealed"])
@pytest.mark.parametrize("content", ["noise", "zeros"])
def test_large_files_take_no_memory(
    seaweed: Seaweed, tmp_path: Path, account: str, place: str, sealed: str, content: str
) -> None:
    # Given a spooled file of 150 MB, which compresses to as much or to next to nothing
    sha256 = hashlib.sha256()
    with (tmp_path / "large").open("wb") as file:
        for _ in range(150):
            block = os.urandom(1 << 20) if content == "noise" else bytes(1 << 20)
            sha256.update(block)
            file.write(block)
    program = """
import hashlib, resource, sys
from pathlib import Path
from mailpoll.blobs import Form, NewBlob, blob_key, storage_from_url
url, path, account, sha256, sealed = sys.argv[1:]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
form = Form(data_key=lambda _: bytes(32), encrypt=bool(sealed))
storage = storage_from_url(url, None, form, lambda: Path(path).parent)
small = NewBlob(blob_key(account, hashlib.sha256(b"x").hexdigest()), 1,
                hashlib.sha256(b"x").hexdigest(), b"x")
storage.put([small])
before = peak()
large = NewBlob(blob_key(account, sha256), Path(path).stat().st_size, sha256, Path(path))
storage.put([large])
with storage.open(large.key, storage.primary_type) as stream:
    assert hashlib.file_digest(stream, "sha256").hexdigest() == sha256
print(peak() - before)
"""
    url = seaweed.url if place == "s3" else f"file://{tmp_path}/blobs"
    arguments = [url, str(tmp_path / "large"), account, sha256.hexdigest(), sealed]
    growth = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )

    # Then putting and reading it needs a few megabytes only
    assert int(growth.stdout) < 32
    # And nothing else is left of it
    assert [path.name for path in tmp_path.iterdir() if path.name != "blobs"] == ["large"]
    if place == "s3":
        client = seaweed.client()
        client.remove_object("mailpoll", blob_key(account, sha256.hexdigest()))


def test_a_missing_bucket_is_made_by_whoever_comes_first(seaweed: Seaweed, account: str) -> None:
    bucket = f"new-{account}"
    blob = new_blob(account)
    stores = [
        S3(seaweed.endpoint, seaweed.access_key, seaweed.secret_key, bucket, secure=False)
        for _ in range(4)
    ]
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(store.put, [blob]) for store in stores]:
            done.result()
    assert content_of(stores[0], blob) == blob.source


def test_a_bucket_that_vanishes_is_unavailability_and_not_a_missing_blob(
    seaweed: Seaweed, account: str
) -> None:
    bucket = f"gone-{account}"
    store = S3(seaweed.endpoint, seaweed.access_key, seaweed.secret_key, bucket, secure=False)
    blob = new_blob(account)
    store.put([blob])
    store.delete([blob.key])
    seaweed.client().remove_bucket(bucket)

    for verb in (store.check, lambda: store.open(blob.key), lambda: store.exists(blob.key)):
        with pytest.raises(StoreUnavailable):
            verb()


def test_wrong_credentials_are_unavailability(seaweed: Seaweed, account: str) -> None:
    store = S3(seaweed.endpoint, seaweed.access_key, "wrong", "blobs", secure=False)
    with pytest.raises(StoreUnavailable) as refused:
        store.put([new_blob(account)])
    assert "wrong" not in str(refused.value)


def test_bytes_damaged_on_the_way_are_refused_by_the_server(
    seaweed: Seaweed, account: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a store that has read a blob to hash it, and sends something else
    store = S3(seaweed.endpoint, seaweed.access_key, seaweed.secret_key, "blobs", secure=False)
    blob = new_blob(account)
    upload = store._upload
    monkeypatch.setattr(
        store,
        "_upload",
        lambda key, body: upload(key, body._replace(content=io.BytesIO(bytes(body.size)))),
    )

    with pytest.raises(StoreUnavailable, match="refused"):
        store.put([blob])
    assert not store.exists(blob.key)


@pytest.mark.parametrize(
    ("answer", "tries"),
    [
        (Answer(etag="0" * 32), 1),
        (Answer(503, "SlowDown", headers={"Retry-After": "3600"}), 2),
        (Answer(500, "InternalError"), 2),
        (Answer(403, "AccessDenied"), 1),
        (Answer(404, "NoSuchBucket"), 1),
        (Answer(307, "TemporaryRedirect", headers={"Location": "http://127.0.0.1:9/"}), 1),
        (Answer(hang_up=True), 2),
    ],
    ids=["other bytes", "slow down", "error", "denied", "no bucket", "redirect", "hang up"],
)
def test_a_put_that_is_not_confirmed_has_failed(answer: Answer, tries: int, account: str) -> None:
    with ScriptedS3(answer) as server, pytest.raises(StoreUnavailable):
        try:
            s3_store(server.endpoint).put([new_blob(account)])
        finally:
            assert server.puts == tries


@pytest.mark.parametrize("first", [Answer(503, "SlowDown"), Answer(hang_up=True)])
def test_a_passing_failure_is_tried_once_more_with_the_whole_body(
    first: Answer, account: str, tmp_path: Path
) -> None:
    blob = new_blob(account, os.urandom(300_000), tmp_path / "spooled")
    with ScriptedS3(first, Answer()) as server:
        s3_store(server.endpoint).put([blob])
    (stored,) = server.objects.values()
    assert zstandard.decompress(stored) == (tmp_path / "spooled").read_bytes()


def test_an_etag_that_is_no_md5_is_accepted_under_key_encryption(account: str) -> None:
    kms = Answer(etag="0" * 32, headers={"x-amz-server-side-encryption": "aws:kms"})
    with ScriptedS3(kms) as server:
        s3_store(server.endpoint).put([new_blob(account)])


def test_a_slow_upload_may_take_longer_than_the_time_out_for_connecting(
    account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "CONNECT_TIMEOUT", 1.0)
    with ScriptedS3(Answer(pause_per_block=0.1)) as server:
        s3_store(server.endpoint).put([new_blob(account, os.urandom(25 << 20))])


# --- storage


@pytest.fixture
def own_seaweed(server_directory: Path) -> Iterator[Seaweed]:
    with Seaweed(server_directory) as server:
        yield server


def make_storage(primary: BlobStore, fallback: LocalFiles | None, pause: float = 3600) -> Storage:
    return Storage(primary, StorageType.OSS, fallback, Circuit(first_pause=pause))


def test_an_outage_of_the_object_store_goes_by(
    own_seaweed: Seaweed, local: LocalFiles, account: str, tmp_path: Path
) -> None:
    # Given a blob in the object store, which then stops
    url = own_seaweed.url
    now = [0.0]
    storage = storage_from_url(url, tmp_path / "blobs")
    storage._circuit = Circuit(clock=lambda: now[0])
    before, during, again = (new_blob(account) for _ in range(3))
    assert storage.put([before]) is StorageType.OSS
    own_seaweed.stop()

    # Then new blobs go to local files and can be read; the others are unavailable, not missing
    assert storage.put([during]) is StorageType.LOCAL
    assert storage.circuit_open
    with storage.open(during.key, StorageType.LOCAL) as stream:
        assert stream.read() == during.source
    with pytest.raises(StoreUnavailable):
        storage.open(before.key, StorageType.OSS)
    with pytest.raises(StoreUnavailable):
        storage.check()
    assert not storage.move_to_primary(during.key, during.size, during.sha256)

    # When it is back and the pause is over
    own_seaweed.start()
    now[0] += 61
    assert not storage.circuit_open

    # Then local blobs can be moved, twice as well
    for _ in range(2):
        assert storage.move_to_primary(during.key, during.size, during.sha256)
    storage.delete([during.key], StorageType.LOCAL)
    assert storage.move_to_primary(during.key, during.size, during.sha256)
    for blob in (before, during):
        with storage.open(blob.key, StorageType.OSS) as stream:
            assert stream.read() == blob.source
    assert keys(local, account) == []
    assert storage.put([again]) is StorageType.OSS
    storage.check()

    # And the account's deletion reaches both stores
    local.put([during])
    assert storage.delete_account(account) == 4
    assert storage.delete_account(account) == 0


def test_a_black_hole_costs_one_time_out(
    local: LocalFiles, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "READ_TIMEOUT", 0.5)
    with BlackHole() as hole:
        storage = make_storage(s3_store(hole.endpoint), local)

        # Given thirty threads that put at once into a store that never answers
        def put() -> StorageType:
            return storage.put([new_blob(account) for _ in range(5)])

        with ThreadPoolExecutor(30) as threads:
            results = [threads.submit(put) for _ in range(30)]
            began = time.monotonic()
            assert {result.result() for result in results} == {StorageType.LOCAL}

        # Then they wait together, for one time-out and not for one each
        assert time.monotonic() - began < 10
        assert hole.connections == 1
        assert storage.circuit_open

        # And whoever comes later does not ask at all
        assert put() is StorageType.LOCAL
        assert hole.connections == 1
    assert len(keys(local, account)) == 31 * 5


def test_a_store_that_goes_silent_later_costs_one_time_out_per_thread_of_the_pool(
    local: LocalFiles, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "READ_TIMEOUT", 0.5)
    with BlackHole() as hole:
        store = s3_store(hole.endpoint)
        store._bucket_known = True
        storage = make_storage(store, local)
        with ThreadPoolExecutor(30) as threads:
            batches = [[new_blob(account) for _ in range(20)] for _ in range(30)]
            assert set(threads.map(storage.put, batches)) == {StorageType.LOCAL}
        assert hole.connections <= s3.PUT_THREADS
        assert storage.circuit_open


def test_without_a_fallback_the_caller_is_told_when_to_come_back(account: str) -> None:
    (closed,) = free_ports(1)
    storage = make_storage(s3_store(f"127.0.0.1:{closed}"), None, pause=100)
    with pytest.raises(StoreUnavailable):
        storage.put([new_blob(account)])
    with pytest.raises(StoreUnavailable) as refused:
        storage.put([new_blob(account)])
    assert 0 < refused.value.retry_after <= 100


def test_when_both_stores_fail_nothing_is_promised(
    local: LocalFiles, account: str, tmp_path: Path
) -> None:
    (closed,) = free_ports(1)
    storage = make_storage(s3_store(f"127.0.0.1:{closed}"), local)
    (tmp_path / "blobs" / ".tmp").rmdir()
    with pytest.raises(StoreUnavailable):
        storage.put([new_blob(account)])


def test_a_store_that_lies_about_bytes_gets_none(local: LocalFiles, account: str) -> None:
    with ScriptedS3(Answer(etag="0" * 32)) as server:
        storage = make_storage(s3_store(server.endpoint), local)
        blob = new_blob(account)
        assert storage.put([blob]) is StorageType.LOCAL
    assert content_of(local, blob) == blob.source


def test_a_damaged_local_copy_is_not_moved(
    local: LocalFiles, account: str, seaweed: Seaweed, tmp_path: Path
) -> None:
    storage = storage_from_url(seaweed.url, tmp_path / "blobs")
    damaged, missing = new_blob(account), new_blob(account)
    local.put([damaged])
    local.path(damaged.key).write_bytes(b"x" * damaged.size)

    with pytest.raises(BlobCorrupt):
        storage.move_to_primary(damaged.key, damaged.size, damaged.sha256)
    with pytest.raises(BlobMissing):
        storage.move_to_primary(missing.key, missing.size, missing.sha256)
    assert not storage.exists(damaged.key, StorageType.OSS)
    assert not storage.circuit_open


@pytest.mark.parametrize("kind", [StorageType.OSS, StorageType.LOCAL])
def test_blobs_of_a_store_that_is_not_configured_are_unavailable_and_not_missing(
    kind: StorageType, account: str, tmp_path: Path
) -> None:
    if kind is StorageType.OSS:
        storage = storage_from_url(f"file://{tmp_path}/blobs", None)
    else:
        storage = make_storage(s3_store("127.0.0.1:9"), None)
    verbs: list[Callable[[str], object]] = [
        lambda key: storage.open(key, kind),
        lambda key: storage.exists(key, kind),
        lambda key: storage.delete([key], kind),
    ]
    for verb in verbs:
        with pytest.raises(StoreUnavailable):
            verb(new_blob(account).key)


def test_local_storage_has_no_circuit(tmp_path: Path, account: str) -> None:
    # Given local storage that fails once
    storage = storage_from_url(f"file://{tmp_path}/blobs", None)
    blob = new_blob(account)
    (tmp_path / "blobs" / ".tmp").rename(tmp_path / "away")
    with pytest.raises(StoreUnavailable):
        storage.put([blob])

    # Then it is asked again as soon as it works again
    (tmp_path / "away").rename(tmp_path / "blobs" / ".tmp")
    assert storage.put([blob]) is StorageType.LOCAL
    assert not storage.circuit_open
    assert storage.delete_account(account) == 1
