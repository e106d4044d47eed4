"""``mailpoll doctor`` without an address: what is wrong with the installation, and what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from mailpoll import checkup, database
from mailpoll.checkup import Finding, State
from mailpoll.models import EmailAccount, Mark, MarkName
from mailpoll.settings import from_environment, settings
from tests.integration.redis_users import ALL_BUT_CHANNELS, ENOUGH, redis_user
from tests.integration.system import PASSWORD, System
from tests.servers.process import free_ports
from tests.servers.valkey import Valkey

CHECKS = ["settings", "database", "keys", "redis", "store", "clocks", "scheduler", "disk"]
CHECKS += ["alarms", "mail servers"]


def found(**changed: str) -> dict[str, Finding]:
    """The worst finding of each check; with other variables, the settings alone differ."""
    config = from_environment(os.environ | changed)
    by_check: dict[str, list[Finding]] = {}
    for finding in checkup.run(config):
        by_check.setdefault(finding.check, []).append(finding)
    worst = list(State).index
    return {name: max(those, key=lambda one: worst(one.state)) for name, those in by_check.items()}


def doctor(*arguments: str, **changed: str) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "mailpoll", "doctor", *arguments],
        env=os.environ | changed,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
        text=True,
    )


def test_all_is_well_where_everything_answers(system: System, address: str) -> None:
    system.add_account(address)
    with database.transaction():
        Mark.set(MarkName.TICK)
    seen = found()
    assert list(seen) == CHECKS
    wrong = [one for one in seen.values() if one.state is State.WRONG]
    assert wrong == []
    assert "1 accounts" in seen["database"].detail
    assert f"localhost:{system.dovecot.imaps_port} can be reached" in seen["mail servers"].detail
    assert "wrote, read and deleted a blob" in seen["store"].detail


def test_each_part_that_is_broken_is_named_and_stops_no_other_check(
    system: System, address: str
) -> None:
    system.add_account(address)
    (port,) = free_ports(1)
    with database.transaction():
        EmailAccount.update(port=port).execute()
    seen = found(
        REDIS_URL=f"redis://127.0.0.1:{free_ports(1)[0]}/0",
        STORAGE_URL=f"s3://key:canary-secret@127.0.0.1:{free_ports(1)[0]}/bucket?secure=0",
        MAILPOLL_IMAP_PORTS=str(port),
    )
    assert list(seen) == CHECKS
    for check in ("redis", "store", "mail servers"):
        assert seen[check].state is State.WRONG, seen[check]
        assert seen[check].advice
    assert f"localhost:{port}" in seen["mail servers"].detail
    assert "Redis does not answer" in seen["clocks"].detail
    assert "no tick" in seen["scheduler"].detail
    assert "canary" not in str(seen)


def test_a_redis_that_throws_keys_away_is_wrong(embedded: System, tmp_path: Path) -> None:
    with Valkey(tmp_path / "own") as own:
        redis.Redis.from_url(own.url).config_set("maxmemory-policy", "allkeys-lru")
        seen = found(REDIS_URL=own.url)
    assert seen["redis"].state is State.WRONG
    assert "noeviction" in seen["redis"].advice


def test_clocks_that_differ_are_wrong(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "CLOCKS", -1)
    seen = found()["clocks"]
    assert seen.state is State.WRONG
    assert "Redis is" in seen.detail
    assert "NTP" in seen.advice


def test_a_database_without_tables_says_what_to_run(embedded: System, tmp_path: Path) -> None:
    result = doctor("--json", MAILPOLL_DATA_DIR=str(tmp_path / "new"))
    assert result.returncode == 1, result.stderr
    document = json.loads(result.stdout)
    assert document["ok"] is False
    (one,) = [check for check in document["checks"] if check["check"] == "database"]
    assert (one["state"], one["advice"]) == ("wrong", "run mailpoll migrate")


def test_people_see_a_line_for_each_check_and_what_to_do(embedded: System) -> None:
    result = doctor()
    assert result.returncode == 1, "no scheduler runs"
    for check in CHECKS:
        assert f" {check} " in result.stdout
    assert "WRONG scheduler" in result.stdout
    assert "-> check that a scheduler and a worker run" in result.stdout
    assert settings().secret_keys[0] not in result.stdout


def test_options_about_a_mailbox_need_its_address(embedded: System) -> None:
    result = doctor("--host", "imap.example.org")
    assert result.returncode == 2
    assert "ADDRESS" in result.stderr
    assert PASSWORD not in result.stderr


def test_a_redis_user_without_channels_is_told_of_them(system: System) -> None:
    with redis_user(system.settings.redis, *ALL_BUT_CHANNELS) as url:
        seen = found(REDIS_URL=url)["redis"]
    assert seen.state is State.CONCERN
    assert "&mailpoll:*" in seen.advice
    with redis_user(system.settings.redis, *ENOUGH) as url:
        assert found(REDIS_URL=url)["redis"].state is State.OK
