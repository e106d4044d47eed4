"""Credentials at rest: nothing but the right row, field and key opens one."""

import base64

import pytest

from mailpoll import database, logins
from mailpoll.crypto import DecryptionError, KeyRing
from mailpoll.models import EmailAccount
from mailpoll.settings import new_key
from tests.integration.rows import account_row
from tests.integration.scripted import polled
from tests.integration.system import System


def test_a_ciphertext_opens_in_its_own_place_only() -> None:
    """S41"""
    ring = KeyRing([new_key()])
    sealed = ring.encrypt("hunter2", "account-a:credential")
    assert ring.decrypt(sealed, "account-a:credential") == "hunter2"
    for elsewhere in ("account-b:credential", "account-a:refresh_token", ""):
        with pytest.raises(DecryptionError):
            ring.decrypt(sealed, elsewhere)


def test_a_flipped_bit_is_noticed() -> None:
    """S41: each bit of nonce, ciphertext and tag."""
    ring = KeyRing([new_key()])
    version, name, body = ring.encrypt("hunter2", "a:credential").split(".")
    data = base64.urlsafe_b64decode(body)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        text = f"{version}.{name}.{base64.urlsafe_b64encode(bytes(changed)).decode()}"
        with pytest.raises(DecryptionError):
            ring.decrypt(text, "a:credential")


@pytest.mark.parametrize(
    "value", ["", "v1", "v1.x.y", "v2.{name}.{body}", "v1.{name}.", "v1.{name}.AAAA"]
)
def test_what_is_no_ciphertext_is_refused(value: str) -> None:
    """S41"""
    ring = KeyRing([new_key()])
    _, name, body = ring.encrypt("x", "c").split(".")
    with pytest.raises(DecryptionError):
        ring.decrypt(value.format(name=name, body=body), "c")


def test_the_same_password_is_never_sealed_alike() -> None:
    """S41: a nonce is not used twice."""
    ring = KeyRing([new_key()])
    assert len({ring.encrypt("hunter2", "c") for _ in range(1_000)}) == 1_000


def test_swapped_rows_fail_closed(embedded: System, address: str) -> None:
    """S41: a credential that was copied to another account is not sent for it."""
    one, two = (account_row(embedded.add_account(name)) for name in (address, f"b-{address}"))
    with database.transaction():
        EmailAccount.update(credential=two.credential).where(EmailAccount.id == one.id).execute()
        EmailAccount.update(credential=one.credential).where(EmailAccount.id == two.id).execute()
    for row in (one, two):
        assert polled(row).last_error_kind == "credential_unreadable"
        with pytest.raises(logins.AccountError):
            logins.stored_login(account_row(row.uuid))
