"""Seeded mail of a realistic mix: 66 % text, 25 % alternative, 8 % with attachment, 1 % large."""

import base64
import random
from collections.abc import Iterator

WORDS = ["invoice", "meeting", "order", "delivery", "question", "answer", "report", "project"]
TEXT = "Content-Type: text/plain; charset=utf-8\r\n"


def mailbox(number: int, messages: int) -> Iterator[bytes]:
    """The messages of one mailbox, the same for the same arguments; mean about 43 KB."""
    rng = random.Random(f"folder {number}")
    for index in range(messages):
        yield _message(rng, f"{index}.{number}@bench.example.org")


def news(number: int, occasion: int) -> bytes:
    """A text that comes later into a mailbox, another one on each occasion."""
    rng = random.Random(f"news {occasion} for {number}")
    head = _head(rng, f"news-{occasion}.{number}@bench.example.org")
    return f"{head}{TEXT}\r\n{_text(rng, 5_000)}".encode()


def attached(name: str, size: int, text: str = "") -> bytes:
    """A message with an attachment of ``size`` bytes, the same for the same arguments."""
    rng = random.Random(f"{name} {size}")
    head = _head(rng, f"{name}@bench.example.org")
    return (head + _with_attachment(rng, size, text)).encode()


def _message(rng: random.Random, message_id: str) -> bytes:
    head = _head(rng, message_id)
    draw = rng.random()
    if draw < 0.66:
        return f"{head}{TEXT}\r\n{_text(rng, rng.randrange(4_000, 10_000))}".encode()
    if draw < 0.91:
        return (head + _alternative(rng, 30_000)).encode()
    size = rng.randrange(80_000, 220_000) if draw < 0.99 else 1_100_000  # 1.5 MB in base64
    return (head + _with_attachment(rng, size, "")).encode()


def _head(rng: random.Random, message_id: str) -> str:
    return (
        f"From: Sender {rng.randrange(1000)} <sender{rng.randrange(1000)}@example.com>\r\n"
        f"To: team@example.org\r\nSubject: {' '.join(rng.choices(WORDS, k=6))}\r\n"
        f"Date: Mon, 23 Nov 2026 10:{rng.randrange(60):02}:00 +0000\r\n"
        f"Message-ID: <{message_id}>\r\nMIME-Version: 1.0\r\n"
    )


def _text(rng: random.Random, size: int) -> str:
    lines = []
    while size > 0:
        line = " ".join(rng.choices(WORDS, k=10))
        lines.append(line)
        size -= len(line) + 2
    return "\r\n".join(lines) + "\r\n"


def _alternative(rng: random.Random, size: int) -> str:
    text = _text(rng, size // 3)
    rows = "".join(f"<p>{line}</p>\r\n" for line in _text(rng, size // 2).split("\r\n"))
    html = f"<html><body>{rows}</body></html>"
    return (
        'Content-Type: multipart/alternative; boundary="alt"\r\n\r\n'
        f"--alt\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{text}\r\n"
        f"--alt\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{html}\r\n--alt--\r\n"
    )


def _with_attachment(rng: random.Random, size: int, text: str) -> str:
    data = base64.encodebytes(rng.randbytes(size)).decode().replace("\n", "\r\n")
    return (
        'Content-Type: multipart/mixed; boundary="mix"\r\n\r\n'
        f"--mix\r\nContent-Type: text/plain\r\n\r\n{text or _text(rng, 2_000)}\r\n"
        '--mix\r\nContent-Type: application/pdf; name="report.pdf"\r\n'
        'Content-Disposition: attachment; filename="report.pdf"\r\n'
        f"Content-Transfer-Encoding: base64\r\n\r\n{data}\r\n--mix--\r\n"
    )
