"""``PATCH /admin/email-accounts/{id}``."""

from typing import Any
from uuid import uuid4

import pytest

from mailpoll import accounts, logins, runtime
from mailpoll.models import AccountState
from mailpoll.settings import new_key
from tests.integration.rows import account_row, change_accounts
from tests.integration.scripted import add, polled
from tests.integration.system import PASSWORD, System, message
from tests.servers.scripted_imap import Rule, ScriptedImap

URL = "/admin/email-accounts"


def patch(system: System, account: str, status: int = 200, **body: Any) -> Any:
    answer = system.api.simulate_patch(f"{URL}/{account}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json


def test_only_given_fields_change(system: System, address: str) -> None:
    account = system.add_account(address)
    before = system.get(f"{URL}/{account}")
    after = patch(system, account, poll_interval=300)
    changed = {name for name in before if before[name] != after[name]}
    assert after["poll_interval"] == 300
    assert changed <= {"poll_interval", "next_poll_at", "updated_at"}
    assert system.get(f"{URL}/{account}")["poll_interval"] == 300


def test_nothing_given_changes_nothing(system: System, address: str) -> None:
    account = system.add_account(address)
    assert patch(system, account)["poll_interval"] == system.settings.poll_interval


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("poll_interval", 0),
        ("poll_interval", None),
        ("port", 70_000),
        ("port", 22),
        ("host", "imap.invalid"),
        ("host", "10.0.0.1"),
        ("host", None),
        ("security", "none"),
        ("password", "wrong"),
        ("password", None),
        ("folders", ["No such folder"]),
        ("folders", []),
        ("address", "other@example.org"),
        ("state", "active"),
        ("lease_token", 0),
        ("import_since", "2026-01-01T00:00:00Z"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_changes(
    embedded: System, address: str, field: str, value: Any
) -> None:
    account = embedded.add_account(address)
    before = embedded.get(f"{URL}/{account}")
    stored = account_row(account).credential
    problem = patch(embedded, account, 422, **{field: value})
    assert problem["errors"][0]["field"].partition(".")[0] == field
    assert embedded.get(f"{URL}/{account}") == before
    assert account_row(account).credential == stored


@pytest.mark.parametrize(("field", "value"), [("port", 25), ("host", "192.168.0.1")])
def test_a_forbidden_place_is_refused_without_a_login_too(
    embedded: System, address: str, field: str, value: Any
) -> None:
    account = embedded.add_account(address)
    problem = patch(embedded, account, 422, test=False, **{field: value})
    assert problem["errors"][0]["field"] == field


def test_a_new_password_ends_refused_logins(system: System, address: str) -> None:
    # Given an account whose password is wrong and whose polls were refused
    account = system.add_account(address, password="wrong", test=False)
    change_accounts(state=AccountState.AUTH_FAILED, auth_failures=3, failures=3)
    # When the right one is given
    shown = patch(system, account, password=PASSWORD)
    # Then it is polled again
    assert shown["state"] == "active"
    assert shown["failures"] == 0
    system.dovecot.deliver(address, message("after"))
    system.poll_and_process(account)
    assert [item["subject"] for item in system.messages(account)] == ["after"]


def test_a_poll_with_the_old_password_does_not_stop_the_account(scripted: System) -> None:
    # Given a poll whose refused login would be the last that is tried
    refusal = b"{tag} NO [AUTHENTICATIONFAILED] wrong\r\n"

    def change_and_refuse() -> bytes:
        # When the right password is given before the server has answered
        accounts.change(account, {"password": "right"}, test=False)
        return refusal

    with ScriptedImap(rules=[Rule("LOGIN", change_and_refuse, times=1)]) as server:
        account = add(server)
        change_accounts(auth_failures=2, failures=2)
        after = polled(account)
        # Then the refusal is that of a password which is no longer used
        assert (after.state, after.auth_failures) == (AccountState.ACTIVE, 0)
        assert polled(account).last_success_at is not None


def test_a_new_password_replaces_one_that_no_key_opens(embedded: System, address: str) -> None:
    # Given a credential that was encrypted with a key that is gone
    account = embedded.add_account(address)
    lost = runtime.KeyRing([new_key()]).encrypt(PASSWORD, logins.credential_context(account))
    change_accounts(credential=lost)
    # Then a test and a change of the host say which field to look at
    problem = embedded.post(f"{URL}/{account}/test", 422)
    assert problem["errors"][0]["field"] == "password"
    assert patch(embedded, account, 422, host="127.0.0.1")["errors"][0]["field"] == "password"
    # And a new password repairs it
    patch(embedded, account, password=PASSWORD)
    assert embedded.post(f"{URL}/{account}/test")["ok"] is True


def test_folders_can_be_chosen_and_freed_again(system: System, address: str) -> None:
    system.dovecot.deliver(address, message("inbox"))
    system.dovecot.deliver(address, message("kept"), folder="Kept")
    account = system.add_account(address, folders=["Kept"])
    system.poll_and_process(account)
    assert [item["subject"] for item in system.messages(account)] == ["kept"]
    patch(system, account, folders=None)
    system.poll_and_process(account)
    assert {item["subject"] for item in system.messages(account)} == {"inbox", "kept"}


def test_a_paused_account_stays_paused(system: System, address: str) -> None:
    account = system.add_account(address)
    system.post(f"{URL}/{account}/pause")
    assert patch(system, account, password=PASSWORD)["state"] == "paused"


def test_an_account_that_is_not_there(system: System) -> None:
    patch(system, str(uuid4()), 404, poll_interval=60)
