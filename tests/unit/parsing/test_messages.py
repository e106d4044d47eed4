"""Whole messages, with what a person would say is in them."""

import json
from pathlib import Path
from typing import Any

import pytest

from mailpoll.parsing import Address, parse

from .invariants import check

MESSAGES = Path(__file__).parents[2] / "fidelity" / "messages"
EXPECTED: dict[str, Any] = json.loads((MESSAGES / "expected.json").read_text())


def test_each_message_has_its_expected_values() -> None:
    assert sorted(EXPECTED) == sorted(path.stem for path in MESSAGES.glob("*.eml"))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_whole_message(name: str) -> None:
    message, wanted = parse(MESSAGES / f"{name}.eml"), EXPECTED[name]
    check(message)
    found = {
        "subject": message.subject,
        "from": _people(message.from_),
        "to": _people(message.to),
        "date": message.date and message.date.isoformat(),
        "text": message.text,
        "html": message.html,
        "attachments": [
            {key: getattr(one, key) for key in ("name", "content_type", "inline", "size", "sha256")}
            for one in message.attachments
        ],
    }
    assert found == wanted


def _people(addresses: list[Address]) -> list[list[str]]:
    return [[one.name, one.address] for one in addresses]
