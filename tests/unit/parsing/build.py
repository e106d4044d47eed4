"""Messages written by hand: bytes as they come over the wire."""

from mailpoll.parsing import ParsedMessage, parse


def mail(*fields: str | bytes, body: str | bytes = b"") -> bytes:
    """A message of these header lines and this body, with CRLF after each field."""
    head = b"".join(_bytes(field) + b"\r\n" for field in fields)
    return head + b"\r\n" + _bytes(body)


def multipart(subtype: str, *parts: bytes, boundary: str = "=-=") -> bytes:
    """A multipart of these parts, each with its own header section, without fields of its own."""
    mark = f"--{boundary}".encode()
    body = b"".join(mark + b"\r\n" + part + b"\r\n" for part in parts)
    return mail(
        f'Content-Type: multipart/{subtype}; boundary="{boundary}"', body=body + mark + b"--\r\n"
    )


def part(content_type: str, body: str | bytes = b"x", *fields: str | bytes) -> bytes:
    """One part: its Content-Type, further fields, its body."""
    return mail(f"Content-Type: {content_type}", *fields, body=body)


def parsed(*fields: str | bytes, body: str | bytes = b"") -> ParsedMessage:
    """What mailpoll reads in `mail` of the same arguments."""
    return parse(mail(*fields, body=body))


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
