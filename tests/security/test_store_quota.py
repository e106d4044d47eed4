"""One account with more mail than it may have: it stops with a reason, the others go on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import SETS, run_system
from tests.integration.scripted import add, polled, stored
from tests.integration.system import System, message
from tests.servers.dovecot import Dovecot
from tests.servers.scripted_imap import ScriptedImap

MEGABYTE = 1_000_000


@pytest.fixture(params=list(SETS))
def limited(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    yield from run_system(
        SETS[request.param](request, tmp_path),
        tmp_path,
        dovecot,
        MAILPOLL_IMAP_PORTS="1024-65535",
        MAILPOLL_IMAP_ALLOW_PLAIN="yes",
        MAILPOLL_BATCH_MESSAGES="10",
        MAILPOLL_ACCOUNT_MESSAGES="50",
        MAILPOLL_ACCOUNT_BYTES=str(2 * MEGABYTE),
    )


@pytest.mark.parametrize(
    ("count", "size", "most"), [(1_000, 10, 60), (40, 200_000, 20)], ids=["many", "large"]
)
def test_an_account_stops_at_its_limit_and_says_so(
    limited: System, count: int, size: int, most: int
) -> None:
    """S61: at the batch after the limit; what is stored stays, nothing is lost at the server."""
    mail = {uid: message(f"n{uid}", "x" * size) for uid in range(1, count + 1)}
    with ScriptedImap(mail) as server, ScriptedImap({1: message("small")}) as other:
        account = polled(add(server))
        assert account.last_error_kind == "account_full"
        assert account.state == "active"
        assert "MAILPOLL_ACCOUNT_MESSAGES" in account.last_error
        assert 0 < len(stored()) <= most
        # It is not tried again soon, and another account is not concerned
        waits = account.next_poll_at - account.last_error_at
        assert waits.total_seconds() > 1_800
        before = len(stored())
        assert polled(add(other, "other@example.org")).last_error is None
        assert len(stored()) == before + 1
        # And with more room it goes on where it was
        shown = limited.get(f"/admin/email-accounts/{account.uuid}")
        assert shown["last_error_kind"] == "account_full"


def test_with_more_room_the_rest_comes(limited: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """S61: nothing was passed over."""
    from mailpoll.settings import settings

    mail = {uid: message(f"n{uid}") for uid in range(1, 121)}
    with ScriptedImap(mail) as server:
        account = polled(add(server))
        assert account.last_error_kind == "account_full"
        monkeypatch.setenv("MAILPOLL_ACCOUNT_MESSAGES", "0")
        settings.cache_clear()
        account = polled(account)
        settings.cache_clear()
    assert account.last_error is None
    assert sorted(stored()) == sorted(mail.values())
