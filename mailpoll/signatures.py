"""DKIM signatures of a stored message, checked when somebody asks (RFC 6376)."""

import re
from contextlib import suppress
from dataclasses import dataclass

import dkim
import dns.exception
import dns.resolver

from .imap import hosts
from .settings import settings

#: Bytes of a message, and signatures of it, that are looked at.
MAX_BYTES, MAX_SIGNATURES = 25_000_000, 5
#: Seconds that one question to DNS may take.
TIMEOUT = 5.0
#: A run of blanks on which the library would take the square of its length.
BLANKS = re.compile(rb"[ \t]{1000}")
#: Bits of an RSA key below which a signature says nothing (RFC 8301).
MIN_KEY = 1_024


@dataclass(slots=True)
class Signature:
    """``result`` is pass, fail, temperror (DNS did not answer) or permerror.

    A pass says that the domain's key has signed these bytes, and nothing about who wrote them.
    """

    domain: str
    selector: str
    result: str
    reason: str = ""


class _Unanswered(Exception):
    """DNS did not answer. The library takes its own exception of that for a bad signature."""


def check(raw: bytes) -> list[Signature]:
    """The signatures of a message, in its order. Asks DNS for their keys."""
    if len(raw) > MAX_BYTES:
        return [Signature("", "", "permerror", f"the message has more than {MAX_BYTES} bytes")]
    if BLANKS.search(raw):
        return [Signature("", "", "permerror", "the message has a line with too many blanks")]
    try:
        headers = dkim.DKIM(raw, minkey=MIN_KEY).headers
    except (dkim.DKIMException, ValueError, IndexError) as error:
        return [Signature("", "", "permerror", _reason(error))]
    number = sum(1 for name, _ in headers if name.lower() == b"dkim-signature")
    return [_checked(raw, place) for place in range(min(number, MAX_SIGNATURES))]


def _checked(raw: bytes, place: int) -> Signature:
    verifier = dkim.DKIM(raw, minkey=MIN_KEY, timeout=TIMEOUT)
    result, reason = "fail", ""
    try:
        if verifier.verify(idx=place, dnsfunc=_text_record):
            result = "pass"
    except _Unanswered:
        result, reason = "temperror", "DNS did not answer"
    # The library raises whatever its parsers meet in a hostile signature.
    except Exception as error:
        result, reason = "permerror", _reason(error)
    found = Signature("", "", result, reason)
    with suppress(AttributeError, UnicodeDecodeError, TypeError):
        fields = verifier.signature_fields
        found.domain = fields.get(b"d", b"").decode()[:255]
        found.selector = fields.get(b"s", b"").decode()[:255]
    return found


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:200]


def _text_record(name: bytes, timeout: float = TIMEOUT) -> bytes | None:
    """A TXT record, as the library asks for it.

    Raises:
      _Unanswered: nobody has in time.
    """
    try:
        answer = hosts.resolver(settings()).resolve(
            name.decode("ascii").rstrip("."), "TXT", lifetime=timeout
        )
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer, UnicodeDecodeError):
        return None
    except (dns.exception.DNSException, OSError) as error:
        raise _Unanswered(str(error)) from None
    return b"".join(next(iter(answer)).strings)
