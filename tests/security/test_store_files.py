"""Files and buckets: what others plant or may read."""

import logging
import os
import stat
from pathlib import Path
from uuid import uuid4

import pytest
from minio import Minio

from mailpoll import processes, spool
from mailpoll.blobs.s3 import S3
from mailpoll.settings import from_environment
from tests.integration.rows import blobs
from tests.integration.scripted import add, polled, stored
from tests.integration.system import System, message
from tests.servers.scripted_imap import ScriptedImap
from tests.servers.seaweed import PUBLIC_BUCKET, Seaweed


def modes(directory: Path) -> dict[str, int]:
    return {
        str(path.relative_to(directory)): stat.S_IMODE(path.lstat().st_mode)
        for path in directory.rglob("*")
    }


def test_only_we_can_read_what_is_spooled(
    scripted: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S60: directory and files, also where a directory with other rights was there before."""
    place = scripted.settings.spool_dir
    place.mkdir(parents=True)
    place.chmod(0o777)
    seen: dict[str, int] = {}
    made = spool.new_file

    def new_file(account_uuid: str) -> Path:
        path = made(account_uuid)
        seen.update({str(path): stat.S_IMODE(path.stat().st_mode)})
        return path

    monkeypatch.setattr(spool, "new_file", new_file)
    with ScriptedImap({1: message("large", "x" * 100_000)}) as server:
        polled(add(server))
    assert len(stored()) == 1
    assert set(seen.values()) == {0o600}
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_a_link_in_place_of_the_spool_is_not_followed(scripted: System, tmp_path: Path) -> None:
    """S60: nothing is written where it leads, and nothing is removed there."""
    victim = tmp_path / "victim"
    victim.mkdir()
    old = victim / "precious"
    old.write_text("x")
    os.utime(old, (0, 0))
    scripted.settings.data_dir.mkdir(parents=True, exist_ok=True)
    scripted.settings.spool_dir.symlink_to(victim)
    with pytest.raises(PermissionError):
        spool.directory()
    assert [path.name for path in victim.iterdir()] == ["precious"]
    scripted.settings.spool_dir.unlink()


def test_a_link_inside_the_spool_is_removed_and_not_followed(
    scripted: System, tmp_path: Path
) -> None:
    """S60: the cleaning of what killed processes left."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("x")
    link = spool.directory() / "old"
    link.symlink_to(victim)
    os.utime(link, (0, 0), follow_symlinks=False)
    spool.directory()
    assert not link.is_symlink()
    assert (victim / "precious").read_text() == "x"


def test_everything_local_is_ours_alone(embedded: System, address: str) -> None:
    """S60: the database, its log, blobs."""
    previous = os.umask(0)
    try:
        embedded.dovecot.deliver(address, message("x"))
        embedded.poll_and_process(embedded.add_account(address))
    finally:
        os.umask(previous)
    directory = embedded.settings.data_dir
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    readable = {name for name, mode in modes(directory).items() if mode & 0o077}
    # What is not ours alone by itself lies in a directory that is.
    assert {name for name in readable if "/" in name} == set()


# --- buckets


def test_a_bucket_that_anyone_can_list_is_warned_of(
    seaweed: Seaweed, caplog: pytest.LogCaptureFixture
) -> None:
    """S59: once, when a process first uses it."""
    client = seaweed.client()
    if not client.bucket_exists(PUBLIC_BUCKET):
        client.make_bucket(PUBLIC_BUCKET)
    # Given a bucket that is open, as a stranger sees it
    list(Minio(seaweed.endpoint, secure=False).list_objects(PUBLIC_BUCKET))
    private = f"private-{uuid4().hex[:12]}"
    client.make_bucket(private)
    for bucket, warned in ((PUBLIC_BUCKET, True), (private, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            keys = (seaweed.access_key, seaweed.secret_key)
            store = S3(seaweed.endpoint, *keys, bucket, secure=False)
            assert list(store.accounts()) == []
            assert list(store.accounts()) == []
        assert caplog.text.count("anyone can list the bucket") == warned


def test_a_name_of_a_blob_cannot_be_guessed(embedded: System, address: str) -> None:
    """S59: it holds the account's random id, and the API never hands out a link to the store."""
    embedded.dovecot.deliver(address, message("x"))
    account = embedded.add_account(address)
    embedded.poll_and_process(account)
    (shown,) = embedded.messages(account)
    for part in ("", "/raw"):
        answer = embedded.api.simulate_get(f"/admin/messages/{shown['id']}{part}")
        assert answer.status_code == 200
        assert "location" not in answer.headers
        assert "X-Amz-Signature" not in answer.text
    assert all(key.startswith(f"{account}/") for key in blobs(account))


def test_a_directory_that_somebody_put_there_before_is_refused(tmp_path: Path) -> None:
    """S60: among temporary files, where the embedded Valkey's socket may have to lie."""
    far = tmp_path / ("d" * 120)
    config = from_environment({"MAILPOLL_DATA_DIR": str(far)})
    place = config.embedded_socket.parent
    assert place != far
    assert not place.exists()
    victim = tmp_path / "victim"
    victim.mkdir()
    place.symlink_to(victim)
    try:
        with pytest.raises(PermissionError):
            processes.valkey_command(config)
        place.unlink()
        processes.valkey_command(config)
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        if os.geteuid() == 0:  # only root can make something somebody else's
            os.chown(place, 65_534, 65_534)
            with pytest.raises(PermissionError):
                processes.valkey_command(config)
    finally:
        place.unlink() if place.is_symlink() else place.rmdir()
