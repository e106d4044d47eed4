"""What holds for every message, whatever bytes it is made of."""

import hashlib
from collections.abc import Iterator

from mailpoll.parsing import ParsedMessage
from mailpoll.parsing.addresses import MAX_ADDRESSES
from mailpoll.parsing.outline import MAX_DEPTH, MAX_PARTS

CHUNK = 64 * 1024


def check(parsed: ParsedMessage) -> None:
    """Fail unless the message can be stored and its attachments are what they say they are."""
    for text in _strings(parsed):
        assert "\0" not in text
        text.encode()  # no lone surrogates
    assert len(parsed.attachments) <= MAX_PARTS + MAX_DEPTH
    for people in (parsed.from_, parsed.to, parsed.cc, parsed.bcc, parsed.reply_to):
        assert len(people) <= MAX_ADDRESSES
    assert parsed.date is None or parsed.date.tzinfo is not None
    for attachment in parsed.attachments:
        digest, size = hashlib.sha256(), 0
        for chunk in attachment.chunks():
            assert len(chunk) <= CHUNK
            digest.update(chunk)
            size += len(chunk)
        assert (digest.hexdigest(), size) == (attachment.sha256, attachment.size)
        assert attachment.safe_name
        assert len(attachment.safe_name.encode()) <= 255
        assert not set("/\\\r\n\0") & set(attachment.safe_name)


def _strings(parsed: ParsedMessage) -> Iterator[str]:
    yield from (parsed.subject, parsed.text, parsed.html, parsed.message_id, parsed.in_reply_to)
    yield from parsed.references
    for name, value in parsed.headers:
        yield from (name, value)
    for people in (
        *(parsed.from_, parsed.sender, parsed.to, parsed.cc, parsed.bcc, parsed.reply_to),
    ):
        for one in people:
            yield from (one.name, one.address)
    for part in parsed.attachments:
        yield from (part.name, part.safe_name, part.content_type, part.content_id)
