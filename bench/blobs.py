"""``python -m bench.blobs``: what the stored form costs for each message, level by level."""

import hashlib
import io
import time
from collections.abc import Callable, Sequence
from uuid import UUID

from bench import corpus
from mailpoll.blobs import Form, NewBlob, blob_key

ACCOUNT = str(UUID(int=1))
LEVELS = (-3, -1, 1, 3, 6, 9)
MAILBOXES = 10
ROUNDS = 5


def main() -> None:
    mail = (raw for number in range(MAILBOXES) for raw in corpus.mailbox(number, 104))
    blobs = [_blob(raw) for raw in mail]
    size = sum(blob.size for blob in blobs)
    hashing = _best(lambda: [hashlib.sha256(blob.source) for blob in blobs])  # type: ignore[arg-type]
    print(
        f"{len(blobs)} messages, {size / len(blobs) / 1_000:.1f} kB each, milliseconds of CPU for "
        f"one, best of {ROUNDS} rounds; {1_000 * hashing / len(blobs):.3f} of reading are SHA-256"
    )
    print("form             stored   write    read")
    for level in LEVELS:
        _measure(f"level {level}", Form(level), blobs, size)
    sealing = Form(1, lambda _: bytes(32), encrypt=True)
    _measure("level 1, sealed", sealing, blobs, size)


def _blob(raw: bytes) -> NewBlob:
    sha256 = hashlib.sha256(raw).hexdigest()
    return NewBlob(blob_key(ACCOUNT, sha256), len(raw), sha256, raw)


def _measure(name: str, form: Form, blobs: Sequence[NewBlob], size: int) -> None:
    stored = [b"".join(form.encode(blob)) for blob in blobs]
    pairs = list(zip(blobs, stored, strict=True))
    share = sum(map(len, stored)) / size
    write = _best(lambda: [list(form.encode(blob)) for blob in blobs])
    read = _best(lambda: [form.decode(blob.key, io.BytesIO(one)).read() for blob, one in pairs])
    per = [1_000 * seconds / len(blobs) for seconds in (write, read)]
    print(f"{name:15} {share:7.1%} {per[0]:7.3f} {per[1]:7.3f}", flush=True)


def _best(work: Callable[[], object]) -> float:
    """CPU seconds."""
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


if __name__ == "__main__":
    main()
