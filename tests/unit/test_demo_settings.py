"""What the demo is configured with."""

import pytest

from mailpoll.demo.__main__ import Demo, _configures, _environment
from mailpoll.settings import Settings, from_environment, new_key, new_token


def configuration() -> Settings:
    secrets = {"MAILPOLL_SECRET_KEY": new_key(), "MAILPOLL_API_TOKEN": new_token()}
    return from_environment({**_environment(Demo(1430, 2, 3)), **secrets})


def test_a_mailbox_of_ones_own_may_be_added_to_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAILPOLL_IMAP_PORTS", raising=False)
    assert all(map(configuration().allows_port, (1430, 143, 993)))
    assert not configuration().allows_port(10_993)
    monkeypatch.setenv("MAILPOLL_IMAP_PORTS", "10993")
    assert all(map(configuration().allows_port, (1430, 10_993)))


def test_nothing_leads_the_demo_to_real_data() -> None:
    known = {str(field.alias) for field in Settings.model_fields.values()}
    assert {name for name in known if not _configures(name)} <= {"MAILPOLL_IMAP_CA_FILE", "PORT"}
