"""SQL that is written out means the same to both databases."""

from mailpoll import database
from mailpoll.database import Statement
from tests.integration.system import System

AMONG = Statement("SELECT count(*) FROM email_accounts WHERE address IN [] AND poll_interval > ?")


def among(*addresses: str) -> int:
    with database.connected():
        (count,) = AMONG.run(list(addresses), 0).fetchone()
    return int(count)


def test_a_list_of_any_length_is_a_parameter(system: System, address: str) -> None:
    system.add_account(address, test=False)
    assert among(address, "other@example.org") == 1
    assert among("other@example.org") == 0
    assert among() == 0


def test_a_poll_that_finds_no_folder_does_not_fail(system: System, address: str) -> None:
    # Given an account that wants a folder which its mailbox does not have
    account = system.add_account(address, folders=["Nowhere"], test=False)
    shown = f"/admin/email-accounts/{account}"
    # When it is polled, then that ends well
    system.work_until(lambda: system.get(shown)["last_success_at"] is not None)
