"""Keys of blobs and URLs of storage: what is taken and what is refused."""

from pathlib import Path

import pytest

from mailpoll.blobs import LocalFiles, StorageType, blob_key, storage_from_url
from mailpoll.blobs.s3 import S3
from mailpoll.blobs.store import BlobStore

ACCOUNT = "0b7a2f0c-9f6e-4d3a-8a64-0123456789ab"
SHA256 = "ab" * 32
KEY = f"{ACCOUNT}/ab/{SHA256}"
NOT_KEYS = [
    "",
    "../../../etc/passwd",
    f"{ACCOUNT}/../{SHA256}",
    f"{ACCOUNT}/cd/{SHA256}",
    f"{ACCOUNT}/ab/{SHA256}/",
    f"{ACCOUNT}/ab/{SHA256}\n",
    f"/{KEY}",
    f"{KEY}\0",
    KEY.upper(),
    KEY.replace("a", "\N{FULLWIDTH LATIN SMALL LETTER A}"),
    ".tmp/ab/" + SHA256,
]


def test_a_key_is_made_of_account_and_hash() -> None:
    assert blob_key(ACCOUNT, SHA256) == KEY


@pytest.mark.parametrize(
    ("account", "sha256"), [("..", SHA256), (ACCOUNT, "abc"), (ACCOUNT, "../" + SHA256[3:])]
)
def test_nothing_else_becomes_a_key(account: str, sha256: str) -> None:
    with pytest.raises(ValueError):
        blob_key(account, sha256)


@pytest.fixture(params=["local", "s3"])
def unconnected(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "local":
        return LocalFiles(tmp_path / "blobs")
    # Port 9 is closed: a key that gets as far as the network shows as StoreUnavailable
    return S3("127.0.0.1:9", "access", "secret", "bucket", secure=False)


@pytest.mark.parametrize("key", NOT_KEYS)
def test_a_store_refuses_what_is_not_a_key(unconnected: BlobStore, key: str) -> None:
    for verb in (unconnected.open, unconnected.exists, lambda key: unconnected.delete([key])):
        with pytest.raises(ValueError, match="not a blob key"):
            verb(key)


@pytest.mark.parametrize("account", ["", ".", "..", ".tmp", "*", ACCOUNT + "/", ACCOUNT[:-1]])
def test_a_store_refuses_what_is_not_an_account(unconnected: BlobStore, account: str) -> None:
    with pytest.raises(ValueError, match="not an account"):
        unconnected.delete_account(account)
    with pytest.raises(ValueError, match="not an account"):
        list(unconnected.list_account(account))


def test_a_file_url_is_local_storage_without_fallback(tmp_path: Path) -> None:
    storage = storage_from_url(f"file://{tmp_path}/with%20space", tmp_path / "unused")
    assert storage.primary_type is StorageType.LOCAL
    assert not storage.has_object_store
    assert (tmp_path / "with space").is_dir()
    assert not (tmp_path / "unused").exists()


def test_an_s3_url_is_an_object_store() -> None:
    storage = storage_from_url("s3://key:se%2Fcret@127.0.0.1:9/bucket?secure=0&region=eu-1", None)
    assert storage.primary_type is StorageType.OSS
    assert storage.has_object_store
    assert not storage.circuit_open


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3://key:hidden@host",
        "s3://key:hidden@host/",
        "s3://key:hidden@host/Bad_Bucket",
        "s3://key:hidden@host/bucket?secure=maybe",
        "s3://key:hidden@host/bucket?secure=0&hidden=1",
        "s3://key:hidden@ho st/bucket",
        "s3://key:hid/den@host:9000/bucket",
        "s3://:hidden@host/bucket",
        "s3://hidden@host/bucket",
        "https://key:hidden@host/bucket",
        "file://relative/hidden",
        "file:///",
        "file:///proc/hidden-cannot-be-made",
    ],
)
def test_a_bad_url_is_refused_without_showing_the_secret(url: str) -> None:
    with pytest.raises(ValueError) as refused:
        storage_from_url(url, None)
    assert str(refused.value)
    if url.startswith("s3:"):
        assert "hid" not in str(refused.value)
        assert refused.value.__cause__ is None
