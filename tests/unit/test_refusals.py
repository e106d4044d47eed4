"""The table of failures is whole, and documented."""

from pathlib import Path

import pytest

from mailpoll.imap import providers
from mailpoll.imap.errors import TREATMENT, Fault, ImapError, refusal

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


@pytest.mark.parametrize("fault", list(Fault))
def test_every_kind_has_a_treatment_and_is_documented(fault: Fault) -> None:
    assert TREATMENT[fault].meaning
    assert f"`{fault}`" in OPERATIONS.read_text()


def test_advice_is_given_where_the_login_is_to_blame_and_the_provider_is_known() -> None:
    error = ImapError(Fault.AUTH_FAILED, "no")
    assert "app password" in providers.explained(error, "imap.mail.yahoo.com")
    assert providers.explained(error, "imap.example.org") == str(error)
    limit = ImapError(Fault.THROTTLED, "wait")
    assert providers.explained(limit, "imap.mail.yahoo.com") == str(limit)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("b'[LIMIT] wait'", "[LIMIT] wait"),
        ("LOGIN command error: BAD [b'no such user']", "no such user"),
        ("command: LOGIN => [UNAVAILABLE] maintenance", "[UNAVAILABLE] maintenance"),
        ("b'* BYE shutting down\\r\\n'", "shutting down"),
        ('b"it\'s over"', "it's over"),
    ],
)
def test_the_servers_words_are_shown_without_the_librarys_wrapping(text: str, words: str) -> None:
    assert refusal(text, Fault.REFUSED).detail == words
