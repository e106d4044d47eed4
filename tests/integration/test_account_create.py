"""``POST /admin/email-accounts``."""

from datetime import timedelta
from typing import Any

import pytest

from mailpoll import queues
from mailpoll.models import EmailAccount
from tests.integration.rows import account_row
from tests.integration.system import System
from tests.servers.process import free_ports

URL = "/admin/email-accounts"


def refused(system: System, body: Any, status: int = 422) -> dict[str, str]:
    """The reasons by field of a refusal, after which there is no account and nothing to do."""
    answer = system.api.simulate_post(URL, json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["status"] == status
    assert system.get(URL)["items"] == []
    assert sum(size.waiting + size.delayed for size in queues.sizes(system.broker)) == 0
    return {error["field"]: error["reason"] for error in answer.json["errors"]}


def test_it_answers_with_the_account_and_its_place(system: System, address: str) -> None:
    answer = system.api.simulate_post(URL, json=system.new_account(address, poll_interval=30))
    assert answer.status_code == 201
    assert answer.json["address"] == answer.json["username"] == address
    assert answer.json["state"] == "active"
    assert answer.json["poll_interval"] == 30
    assert answer.headers["location"] == f"{URL}/{answer.json['id']}"
    assert system.get(answer.headers["location"]) == answer.json
    assert "password" not in answer.json


def test_its_first_poll_waits_in_the_queue(system: System, address: str) -> None:
    system.add_account(address)
    waiting = {size.queue: size.waiting for size in queues.sizes(system.broker)}
    assert waiting["poll"] == 1


def test_the_password_is_encrypted_in_the_database(embedded: System, address: str) -> None:
    account = account_row(embedded.add_account(address))
    assert account.credential.startswith("v1.")
    assert "secret" not in account.credential


def test_an_address_is_polled_once(system: System, address: str) -> None:
    first = system.add_account(address)
    answer = system.api.simulate_post(URL, json=system.new_account(address))
    assert answer.status_code == 409
    assert answer.json["errors"][0]["field"] == "address"
    assert [item["id"] for item in system.get(URL)["items"]] == [first]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("address", "nobody"),
        ("address", "two words@example.org"),
        ("address", "a\x00@example.org"),
        ("address", 5),
        ("address", None),
        ("address", "a" * 400 + "@example.org"),
        ("password", ""),
        ("password", ["secret"]),
        ("password", "a\r\nb"),
        ("password", "x" * 10_001),
        ("host", ""),
        ("host", "imap.example.org/path"),
        ("host", "a b"),
        ("host", "h" * 254),
        ("port", 0),
        ("port", 70_000),
        ("port", "993"),
        ("port", True),
        ("port", 22),
        ("port", 6379),
        ("security", "ssl"),
        ("username", "a\nb"),
        ("auth", "kerberos"),
        ("folders", []),
        ("folders", "INBOX"),
        ("folders", [""]),
        ("folders", ["a\x00b"]),
        ("folders", ["No such folder"]),
        ("poll_interval", 0),
        ("poll_interval", 4),
        ("poll_interval", 86_401),
        ("poll_interval", 60.5),
        ("poll_interval", "60"),
        ("import_since", "yesterday"),
        ("import_since", 20_260_101),
        ("import_since", "0001-01-01T00:00:00+14:00"),
        ("import_since", "9999-12-31T23:59:59-14:00"),
        ("test", "perhaps"),
        ("state", "paused"),
        ("storage_type", "local"),
        ("cursor", 5),
        ("owner", "me"),
        ("id", "1"),
    ],
)
def test_a_wrong_field_is_named(embedded: System, address: str, field: str, value: Any) -> None:
    reasons = refused(embedded, {**embedded.new_account(address), field: value})
    assert [name.partition(".")[0] for name in reasons] == [field]
    assert all(reasons.values())


@pytest.mark.parametrize("field", ["address", "password"])
def test_a_missing_field_is_named(embedded: System, address: str, field: str) -> None:
    body = embedded.new_account(address)
    del body[field]
    assert list(refused(embedded, body)) == [field]


def test_all_wrong_fields_are_named_at_once(embedded: System, address: str) -> None:
    body = embedded.new_account(address, poll_interval=0, port=70_000, colour="red")
    assert refused(embedded, body).keys() == {"poll_interval", "port", "colour"}


@pytest.mark.parametrize("body", [[], "text", 5, True])
def test_a_body_that_is_no_object_is_refused(embedded: System, body: Any) -> None:
    refused(embedded, body)


def test_a_wrong_password_is_told_from_other_faults(system: System, address: str) -> None:
    reasons = refused(system, system.new_account(address, password="not-the-password"))
    assert "refused the user name or password" in reasons["password"]
    assert "not-the-password" not in reasons["password"]


def test_a_host_that_does_not_resolve(embedded: System, address: str) -> None:
    reasons = refused(embedded, embedded.new_account(address, host="imap.invalid"))
    assert "does not resolve" in reasons["host"]


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "10.0.0.1",
        "192.168.1.1",
        "0.0.0.0",
        "fd00::1",
        "::",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "167772161",
        "0xa.1",
        "224.0.0.1",
    ],
)
def test_a_private_host_is_refused(embedded: System, address: str, host: str) -> None:
    reasons = refused(embedded, embedded.new_account(address, host=host))
    assert "private or loopback" in reasons["host"]


@pytest.mark.parametrize("host", ["10.0.0.1", "fd00::1", "::ffff:169.254.169.254"])
def test_a_private_address_is_refused_without_a_login_too(
    embedded: System, address: str, host: str
) -> None:
    reasons = refused(embedded, embedded.new_account(address, host=host, test=False))
    assert "private or loopback" in reasons["host"]


def test_a_port_of_another_service_is_refused_without_a_login_too(
    embedded: System, address: str
) -> None:
    assert "port" in refused(embedded, embedded.new_account(address, port=25, test=False))


def test_a_domain_too_long_for_a_host_is_refused(system: System) -> None:
    body = {"address": "a@" + "d" * 300, "password": "secret", "test": False}
    body["port"] = system.dovecot.imaps_port
    assert "host" in refused(system, body)


def test_a_server_without_trust_is_refused(embedded: System, address: str) -> None:
    # The certificate is for localhost and 127.0.0.1
    reasons = refused(embedded, embedded.new_account(address, host="127.1"))
    assert "no secure connection" in reasons["security"]


def test_connections_without_tls_are_refused(embedded: System, address: str) -> None:
    body = embedded.new_account(address, security="plain", port=embedded.dovecot.imap_port)
    assert "MAILPOLL_IMAP_ALLOW_PLAIN" in refused(embedded, body)["security"]


def test_starttls_works(embedded: System, address: str) -> None:
    embedded.add_account(address, security="starttls", port=embedded.dovecot.imap_port)


def test_without_a_login_it_is_saved_as_given(embedded: System, address: str) -> None:
    account = embedded.add_account(address, password="wrong", test=False)
    assert embedded.get(f"{URL}/{account}")["state"] == "active"


def test_a_time_without_offset_is_in_utc(system: System, address: str) -> None:
    account = system.add_account(address, import_since="2026-01-31T12:00:00")
    assert system.get(f"{URL}/{account}")["import_since"] == "2026-01-31T12:00:00Z"


def test_it_is_added_while_the_queue_is_away(
    embedded: System, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a Redis that is gone
    (closed,) = free_ports(1)
    pool = embedded.broker.client.connection_pool
    pool.reset()
    with monkeypatch.context() as patch:
        patch.setitem(pool.connection_kwargs, "port", closed)
        # When an account is added
        answer = embedded.api.simulate_post(URL, json=embedded.new_account(address))
    pool.reset()
    # Then it is there, due now, and not reported as failed
    assert answer.status_code == 201, answer.text
    assert [item["address"] for item in embedded.get(URL)["items"]] == [address]
    # And the next tick enqueues its poll
    (due,) = EmailAccount.claim_due(timedelta(0), 10)
    assert due.id == account_row(answer.json["id"]).id
