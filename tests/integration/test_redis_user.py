"""A Redis user with the rights that docs/deployment.md names can do all that mailpoll does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mailpoll import actors
from tests.integration.conftest import SETS, run_system
from tests.integration.redis_users import ENOUGH, redis_user
from tests.integration.system import System, message
from tests.servers.dovecot import Dovecot


@pytest.fixture(params=SETS)
def system(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    variables = SETS[request.param](request, tmp_path)
    with redis_user(variables["REDIS_URL"], *ENOUGH) as url:
        yield from run_system(variables | {"REDIS_URL": url}, tmp_path, dovecot)


def test_its_rights_are_those_of_the_documentation() -> None:
    words = f"`ACL SETUSER mailpoll on >password {' '.join(ENOUGH)}`"
    assert words in (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()


def test_mail_comes_in_and_is_deleted(system: System, address: str) -> None:
    system.dovecot.deliver(address, message("new"))
    account = system.add_account(address)
    system.poll_and_process(account)
    assert [one["subject"] for one in system.messages(account)] == ["new"]
    # And what looks after the queues may look; that all can be deleted is seen after each test
    for actor in (actors.schedule_polls, actors.watch):
        actor.fn()
    assert system.get("/admin/tasks")["queues"]
    assert "mailpoll_redis_memory" in system.api.simulate_get("/metrics").text
