"""The stored form of blobs: exact when whole, refused when anything of it is not what it was."""

import hashlib
import io
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mailpoll.blobs import BlobCorrupt, Form, NewBlob, blob_key
from mailpoll.blobs.form import KEPT, SALT_BYTES, SEALED, SEGMENT, SMALL, TAG_BYTES

ANN = "0b7a2f0c-9f6e-4d3a-8a64-0123456789ab"
BEN = "1b7a2f0c-9f6e-4d3a-8a64-0123456789ab"
KEYS = {ANN: bytes(range(32)), BEN: bytes(range(1, 33))}

PLAIN = Form(data_key=KEYS.__getitem__)
SEALING = Form(data_key=KEYS.__getitem__, encrypt=True)
FORMS = pytest.mark.parametrize("form", [PLAIN, SEALING], ids=["plain", "sealed"])
HEADER = len(SEALED) + SALT_BYTES


def blob_of(content: bytes, account: str = ANN, *, stream: bool = False) -> NewBlob:
    sha256 = hashlib.sha256(content).hexdigest()
    source = (lambda: io.BytesIO(content)) if stream else content
    return NewBlob(blob_key(account, sha256), len(content), sha256, source)


def encoded(form: Form, blob: NewBlob) -> bytes:
    return b"".join(form.encode(blob))


def decoded(form: Form, key: str, stored: bytes) -> bytes:
    with form.decode(key, io.BytesIO(stored)) as stream:
        return stream.read()


def letter(size: int) -> bytes:
    """Some text and some noise, the same at each run."""
    noise = random.Random(size).randbytes(size // 2)
    return (b"Subject: hello\r\n\r\n" + noise).ljust(size, b"x")[:size]


@FORMS
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "size", [0, 1, 9_000, SEGMENT - 1, SEGMENT, SEGMENT + 1, SMALL, SMALL + 1, 3_000_000]
)
def test_a_blob_comes_back_exactly(form: Form, size: int, stream: bool) -> None:
    blob = blob_of(letter(size), stream=stream)
    stored = encoded(form, blob)
    assert decoded(form, blob.key, stored) == letter(size)
    # And in reads of any size
    with form.decode(blob.key, io.BytesIO(stored)) as content:
        assert b"".join(iter(lambda: content.read(10_007), b"")) == letter(size)


@given(st.binary(max_size=2_000), st.booleans(), st.booleans())
def test_any_bytes_come_back_exactly(content: bytes, sealed: bool, stream: bool) -> None:
    blob = blob_of(content, stream=stream)
    stored = encoded(SEALING if sealed else PLAIN, blob)
    assert decoded(PLAIN, blob.key, stored) == content


def test_a_plain_blob_is_one_zstd_frame_with_size_and_checksum() -> None:
    for stream in (False, True):
        stored = encoded(PLAIN, blob_of(letter(50_000), stream=stream))
        told = zstandard.get_frame_parameters(stored)
        assert (told.content_size, told.has_checksum) == (50_000, True)
        assert zstandard.decompress(stored) == letter(50_000)


def test_a_sealed_blob_shows_nothing_and_never_looks_the_same_twice() -> None:
    blob = blob_of(b"Subject: secret\r\n\r\n" * 100)
    first, second = encoded(SEALING, blob), encoded(SEALING, blob)
    assert first.startswith(SEALED)
    assert b"secret" not in first
    assert first[len(SEALED) :] != second[len(SEALED) :]
    assert first[HEADER:] != second[HEADER:]


def test_both_forms_can_be_read_whatever_the_setting() -> None:
    blob = blob_of(letter(9_000))
    for writer in (PLAIN, SEALING):
        for reader in (PLAIN, SEALING, Form(19, KEYS.__getitem__, encrypt=True)):
            assert decoded(reader, blob.key, encoded(writer, blob)) == letter(9_000)


def cuts(stored: bytes) -> Iterator[bytes]:
    for lost in (1, 2, 4, 5, TAG_BYTES, len(stored) // 2, len(stored) - 1, len(stored)):
        yield stored[:-lost]


def longer(stored: bytes) -> Iterator[bytes]:
    yield stored + b"x"
    yield stored + stored
    yield stored + zstandard.compress(b"more")


@FORMS
@pytest.mark.parametrize("damage", [cuts, longer])
@pytest.mark.parametrize("size", [1, 9_000, SMALL, 3_000_000])
def test_a_blob_that_lost_or_gained_bytes_is_refused(
    form: Form, damage: Callable[[bytes], Iterator[bytes]], size: int
) -> None:
    for stream in (False, True):
        blob = blob_of(letter(size), stream=stream)
        for damaged in damage(encoded(form, blob)):
            with pytest.raises(BlobCorrupt):
                decoded(form, blob.key, damaged)


@FORMS
@pytest.mark.parametrize("size", [1, 9_000, 3_000_000])
def test_no_flipped_bit_changes_what_is_read(form: Form, size: int) -> None:
    blob = blob_of(letter(size))
    stored = encoded(form, blob)
    refused = 0
    positions = [*range(min(len(stored), 40)), *random.Random(1).choices(range(len(stored)), k=60)]
    for position in positions:
        damaged = bytearray(stored)
        damaged[position] ^= 1 << position % 8
        try:
            # A few bits of a frame's header say nothing about its content
            assert decoded(form, blob.key, bytes(damaged)) == letter(size)
        except BlobCorrupt:
            refused += 1
    assert refused >= len(positions) - (8 if form is PLAIN else 0)


@FORMS
def test_no_byte_of_a_small_damaged_blob_is_given_out_and_the_end_of_a_large_one_never(
    form: Form,
) -> None:
    for size in (9_000, 5_000_000):
        blob = blob_of(letter(size))
        stored = bytearray(encoded(form, blob))
        stored[-1] ^= 1
        given_out = b""
        with (
            pytest.raises(BlobCorrupt),
            form.decode(blob.key, io.BytesIO(bytes(stored))) as stream,
        ):
            while piece := stream.read(1_000):
                given_out += piece
        assert len(given_out) < size
        assert size > SMALL or given_out == b""


def test_a_sealed_blob_opens_under_its_own_name_only() -> None:
    content = letter(9_000)
    ann, ben = blob_of(content), blob_of(content, BEN)
    other = blob_of(letter(8_000))
    for stored, key in (
        (encoded(SEALING, ann), ben.key),
        (encoded(SEALING, ben), ann.key),
        (encoded(SEALING, other), ann.key),
    ):
        with pytest.raises(BlobCorrupt):
            decoded(SEALING, key, stored)
    # Nor for somebody who has another key for the same account
    with pytest.raises(BlobCorrupt):
        decoded(Form(data_key=lambda _: bytes(32)), ann.key, encoded(SEALING, ann))


def test_a_plain_blob_under_another_name_is_refused() -> None:
    with pytest.raises(BlobCorrupt):
        decoded(PLAIN, blob_of(b"this").key, encoded(PLAIN, blob_of(b"that")))


def test_segments_of_a_sealed_blob_keep_their_order_and_their_end() -> None:
    blob = blob_of(os.urandom(5 * SEGMENT))
    stored = encoded(SEALING, blob)
    size = SEGMENT + TAG_BYTES
    header, body = stored[:HEADER], stored[HEADER:]
    segments = [body[start : start + size] for start in range(0, len(body), size)]
    for changed in (
        [segments[1], segments[0], *segments[2:]],
        segments[:-1],
        segments[1:],
        [*segments, segments[-1]],
        [*segments[:2], *segments[1:]],
    ):
        with pytest.raises(BlobCorrupt):
            decoded(SEALING, blob.key, header + b"".join(changed))
    assert decoded(SEALING, blob.key, header + b"".join(segments)) == blob.source


def test_a_key_that_is_not_to_be_had_is_neither_damage_nor_plain_text() -> None:
    def refuse(account: str) -> bytes:
        raise PermissionError(account)

    locked = Form(data_key=refuse, encrypt=True)
    blob = blob_of(letter(9_000))
    with pytest.raises(PermissionError):
        encoded(locked, blob)
    with pytest.raises(PermissionError):
        decoded(locked, blob.key, encoded(SEALING, blob))
    # And what is not sealed needs no key
    assert decoded(locked, blob.key, encoded(PLAIN, blob)) == letter(9_000)


def test_what_is_read_is_closed_with_its_stream_and_when_it_is_refused() -> None:
    for size in (9_000, 5_000_000):
        blob = blob_of(os.urandom(size))
        stored = io.BytesIO(encoded(PLAIN, blob))
        PLAIN.decode(blob.key, stored).close()
        assert stored.closed
    bad = io.BytesIO(b"not a frame")
    with pytest.raises(BlobCorrupt):
        PLAIN.decode(blob_of(b"").key, bad)
    assert bad.closed


def test_a_form_keeps_little_memory_whatever_it_has_compressed() -> None:
    form = Form()
    messages = [blob_of(os.urandom(size)) for size in (4_000, 30_000, 100_000, SMALL) * 8]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda blob: encoded(form, blob), messages))
    idle = form._compressors
    with ExitStack() as used:
        kept = [used.enter_context(idle.one()) for _ in range(4 * KEPT)]
        for compressor in kept:
            compressor.compress(b"short")
        assert max(compressor.memory_size() for compressor in kept) < 300_000
    assert len(idle._idle) == KEPT


def test_threads_share_a_form() -> None:
    start = threading.Barrier(8)

    def work(number: int) -> bool:
        start.wait()
        blobs = [blob_of(letter(1_000 + number * 7 + n)) for n in range(200)]
        return all(decoded(SEALING, one.key, encoded(SEALING, one)) == one.source for one in blobs)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))


@pytest.mark.parametrize("level", [-7, 1, 19])
def test_every_level_makes_the_same_of_it(level: int) -> None:
    blob = blob_of(letter(100_000))
    assert decoded(PLAIN, blob.key, encoded(Form(level), blob)) == letter(100_000)
