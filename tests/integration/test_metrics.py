"""``/metrics``, and the alerts and the dashboard that are made of it."""

import json
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from prometheus_client.parser import text_string_to_metric_families

from mailpoll import accounts, actors, counters, database, fsck, holds, runtime
from mailpoll.actors.poll import poll
from mailpoll.crypto import key_id
from mailpoll.models import EmailAccount, EmailRawMessage, LeaseLost
from tests.integration.conftest import _embedded, run_system
from tests.integration.rows import account_row, change_accounts, change_messages
from tests.integration.system import KEY, System, message
from tests.integration.test_account_delete import delete
from tests.integration.test_fsck import flip, spoil
from tests.servers.dovecot import Dovecot
from tests.servers.process import free_ports

DOCKER = Path(__file__).parents[2] / "docker"
RULES = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())
DASHBOARD = json.loads((DOCKER / "grafana" / "mailpoll.json").read_text())
NAME = re.compile(r"\bmailpoll_\w+")

Samples = dict[tuple[str, ...], float]


def scrape(system: System) -> Samples:
    """Value by name and label values."""
    answer = system.api.simulate_get("/metrics")
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def risen(before: Samples, after: Samples) -> Samples:
    """What has grown, and by how much."""
    return {
        name: value - before.get(name, 0.0)
        for name, value in after.items()
        if value > before.get(name, 0.0)
    }


def alerts() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def queries() -> list[str]:
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


# Alerts and dashboard


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert len(names) == len(set(names)) > 20
    for alert in alerts():
        assert alert.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert set(alert["annotations"]) == {"summary", "action"}
        assert alert["annotations"]["action"].endswith(".")
        if "for" in alert:
            assert re.fullmatch(r"\d+[mh]", alert["for"])


@pytest.mark.parametrize("expression", [*(alert["expr"] for alert in alerts()), *queries()])
def test_expressions_are_whole(expression: str) -> None:
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)
    assert expression.count('"') % 2 == 0
    for name, suffix in re.findall(
        r"(?:rate|increase)\((mailpoll_\w+?)(_total|_bucket)?[{\[]", expression
    ):
        assert suffix, f"{name} is no counter"


def test_alerts_and_dashboard_ask_for_what_there_is(system: System, address: str) -> None:
    # Given an installation in which a bit of everything has happened
    system.dovecot.deliver(address, message("x"))
    account = system.add_account(address)
    system.poll_and_process(account)
    actors.watch.fn()
    delete(system, system.add_account(f"other-{address}", test=False))
    text = system.api.simulate_get("/metrics").text
    given = {
        name
        for family in text_string_to_metric_families(text)
        for name in (sample.name for sample in family.samples)
    }
    # Then each name is in a scrape, with samples, but for what nobody has put there yet
    expressions = [*(alert["expr"] for alert in alerts()), *queries()]
    asked = {name for expression in expressions for name in NAME.findall(expression)}
    assert asked - given - {"mailpoll_unfetched"} == set()
    assert len(asked) > 35
    assert "mailpoll_unfetched" in text
    # And every metric that there is stands on the dashboard
    shown = {name for expression in queries() for name in NAME.findall(expression)}
    left_out = {name for name in given if name.startswith("mailpoll_")} - shown
    assert {
        name for name in left_out if not re.search(r"_(bucket|sum|count|created)$", name)
    } == set()


def test_label_values_in_expressions_are_those_of_metrics(system: System, address: str) -> None:
    system.poll_and_process(system.add_account(address))
    values = {value for _, *labels in scrape(system) for value in labels}
    expressions = [*(alert["expr"] for alert in alerts()), *queries()]
    for expression in expressions:
        for value in re.findall(r'=~?"([^"]+)"', expression):
            for one in value.split("|"):
                # An import has none of this one's messages, as it was empty
                assert one in values | {"mailpoll", "process_message", "import_messages"}, (
                    expression
                )


def test_the_example_loads_the_alerts() -> None:
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "mailpoll"


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


# Figures


def test_polls_are_counted_by_lateness(system: System, address: str) -> None:
    account = system.add_account(address)
    row = account_row(account)
    before = scrape(system)
    for seconds in (3, 45, 7_200):
        change_accounts(next_poll_at=database.now() - timedelta(seconds=seconds))
        poll(row.id, None)
    poll(row.id, None)  # before its time, so it is not late
    rise = risen(before, scrape(system))
    name = "mailpoll_poll_lateness_seconds"
    assert rise[f"{name}_count",] == 3
    buckets = {bound: rise.get((f"{name}_bucket", bound), 0) for bound in ("2.0", "5.0", "60.0")}
    assert buckets == {"2.0": 0, "5.0": 1, "60.0": 2}
    assert rise[f"{name}_bucket", "+Inf"] == 3
    assert 7_248 <= rise[f"{name}_sum",] < 7_260


def test_failed_polls_are_counted_by_reason(system: System, address: str) -> None:
    account = system.add_account(address, password="wrong", test=False)
    before = scrape(system)
    assert before["mailpoll_poll_failures_total", "auth_failed"] >= 0
    poll(account_row(account).id, None)
    rise = risen(before, scrape(system))
    reasons = {
        key: value for key, value in rise.items() if key[0] == "mailpoll_poll_failures_total"
    }
    assert reasons == {("mailpoll_poll_failures_total", "auth_failed"): 1}


def test_retention_is_counted_by_rule_and_what_holds_refuse(system: System, address: str) -> None:
    # Given old mail, one message of it under a hold
    for number in range(3):
        system.dovecot.deliver(address, message(f"old {number}"), received_at=1_700_000_000)
    account = system.add_account(address)
    system.poll_and_process(account)
    row = account_row(account)
    with database.connected():
        kept = EmailRawMessage.get()
    holds.hold(row, "court", kept)
    change_accounts(retention_days=30, retained_at=None)
    before = scrape(system)
    # When retention goes through the account, and then somebody wants it deleted
    actors.retain.fn()
    answer = system.api.simulate_delete(f"/admin/email-accounts/{account}")
    # Then both rules are there, and each refusal is counted
    assert answer.status_code == 409
    rise = risen(before, scrape(system))
    assert rise["mailpoll_retention_deleted_total", "age"] == 2
    assert before["mailpoll_retention_deleted_total", "expunged"] >= 0
    assert rise["mailpoll_hold_refusals_total", "retention"] == 1
    assert rise["mailpoll_hold_refusals_total", "account"] == 1
    # And a hold on the whole account has all of it left
    holds.hold(row, "court")
    change_accounts(retained_at=None)
    before = scrape(system)
    actors.retain.fn()
    rise = risen(before, scrape(system))
    assert rise["mailpoll_hold_refusals_total", "retention"] == 1
    assert ("mailpoll_retention_deleted_total", "age") not in rise
    holds.lift(row, kept)
    holds.lift(row)


def test_a_run_of_retention_that_does_not_happen_shows(system: System, address: str) -> None:
    name = ("mailpoll_retention_waiting_seconds",)
    system.add_account(address, test=False)
    # Whoever keeps mail for ever waits for nothing
    change_accounts(retained_at=database.now() - timedelta(days=3))
    assert scrape(system)[name] == 0
    change_accounts(retention_days=30)
    assert 3 * 86_400 <= scrape(system)[name] < 3 * 86_400 + 600
    actors.retain.fn()
    assert scrape(system)[name] < 600
    # One that was never gone through waits since it was added
    change_accounts(retained_at=None, created_at=database.now() - timedelta(days=2))
    assert 2 * 86_400 <= scrape(system)[name] < 2 * 86_400 + 600


def test_what_is_delivered_twice_is_counted(system: System, address: str) -> None:
    system.dovecot.deliver(address, message("x"))
    account = system.add_account(address)
    system.poll_and_process(account)
    row = account_row(account)
    with database.connected():
        done = EmailRawMessage.get()
    before = scrape(system)
    actors.process_message.fn(done.id)
    poll(row.id, row.due - 1)
    rise = risen(before, scrape(system))
    assert rise["mailpoll_duplicate_delivery_total", "message"] == 1
    assert rise["mailpoll_duplicate_delivery_total", "poll"] == 1


def test_refused_fences_are_counted(system: System, address: str) -> None:
    account = account_row(system.add_account(address, test=False))
    leased = EmailAccount.lease(account.id, None, 60)
    assert leased
    accounts.pause(account)
    before = scrape(system)
    with pytest.raises(LeaseLost), database.transaction():
        leased.fence(60)
    assert risen(before, scrape(system))["mailpoll_fence_refused_total",] == 1


def test_what_the_sweeper_enqueues_is_counted(system: System, address: str) -> None:
    system.dovecot.deliver_many(address, [message(str(n)) for n in range(3)])
    account = system.add_account(address)
    poll(account_row(account).id, None)
    system.broker.flush_all()
    change_messages(next_attempt_at=database.now() - timedelta(hours=2))
    before = scrape(system)
    assert before["mailpoll_stuck_messages",] == 3
    actors.sweep.fn()
    after = scrape(system)
    assert risen(before, after)["mailpoll_sweeper_reenqueued_total",] == 3
    assert after["mailpoll_stuck_messages",] == 0
    system.poll_and_process(account)


@pytest.mark.leaves_damage
def test_messages_that_are_given_up_are_counted_by_reason(system: System, address: str) -> None:
    system.dovecot.deliver_many(address, [message(str(n)) for n in range(3)])
    account = system.add_account(address)
    poll(account_row(account).id, None)
    system.broker.flush_all()
    with database.connected():
        missing, corrupt, deadly = EmailRawMessage.select().order_by(EmailRawMessage.id)
    storage = runtime.storage()
    # Given one whose blob is gone, one whose bytes have changed, and one that kills its workers
    storage.delete([missing.storage_key], missing.storage_type)
    spoil(system, corrupt.storage_key, flip)
    with database.transaction():
        EmailRawMessage.update(attempts=9, next_attempt_at=database.now()).where(
            EmailRawMessage.id == deadly.id
        ).execute()
    before = scrape(system)
    actors.process_message.fn(missing.id)
    actors.process_message.fn(corrupt.id)
    actors.sweep.fn()
    rise = risen(before, scrape(system))
    for reason in ("missing", "corrupt", "attempts"):
        assert rise["mailpoll_quarantined_total", reason] == 1
    assert rise["mailpoll_checksum_mismatch_total",] == 1


@pytest.fixture
def sparing(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    limits = {"MAILPOLL_PART_BYTES": "10000", "MAILPOLL_MAX_MESSAGE_BYTES": "20000"}
    yield from run_system({**_embedded(request, tmp_path), **limits}, tmp_path, dovecot)


def test_messages_over_the_limit_are_counted_once(sparing: System, address: str) -> None:
    sparing.dovecot.deliver(address, message("large", "x" * 60_000))
    account = sparing.add_account(address)
    before = scrape(sparing)
    for _ in range(2):
        poll(account_row(account).id, None)
    after = scrape(sparing)
    assert risen(before, after)["mailpoll_too_large_total",] == 1
    assert after["mailpoll_unfetched", "too_large"] == 1


def test_deletions_are_counted_by_step(system: System, address: str) -> None:
    account = system.add_account(address, test=False)
    assert not any(name == "mailpoll_delete_jobs" for name, *_ in scrape(system))
    delete(system, account)
    assert scrape(system)["mailpoll_delete_jobs", "queues"] == 1


def test_secrets_are_counted_by_their_key(system: System, address: str) -> None:
    for n in range(3):
        system.add_account(f"{n}-{address}", test=False)
    # Each has a password and the key of its blobs.
    assert scrape(system)["mailpoll_key_rows", key_id(KEY)] == 6


def test_ticks_clocks_and_checks_are_shown(system: System) -> None:
    found = scrape(system)
    assert found["mailpoll_scheduler_last_tick_seconds",] == float("inf")
    assert found["mailpoll_fsck_last_ok_timestamp_seconds",] == 0
    actors.watch.fn()
    assert list(fsck.check(None, fsck.Tally(), offline=True)) == []
    found = scrape(system)
    assert 0 <= found["mailpoll_scheduler_last_tick_seconds",] < 60
    assert time.time() - 60 < found["mailpoll_fsck_last_ok_timestamp_seconds",] < time.time() + 60
    for process in ("web", "worker"):
        assert abs(found["mailpoll_clock_offset_seconds", process]) < 5
    assert found["mailpoll_redis_policy_ok",] in (0, 1)
    assert 0 < found["mailpoll_redis_memory_ratio",] < 1


@pytest.mark.leaves_damage
def test_a_check_with_differences_is_not_sound(system: System, address: str) -> None:
    system.dovecot.deliver(address, message("x"))
    system.poll_and_process(system.add_account(address))
    with database.connected():
        row = EmailRawMessage.get()
    runtime.storage().delete([row.storage_key], row.storage_type)
    assert len(list(fsck.check(None, fsck.Tally(), offline=True))) == 1
    found = scrape(system)
    assert found["mailpoll_fsck_differences",] == 1
    assert found["mailpoll_fsck_last_ok_timestamp_seconds",] == 0


def test_counters_of_processes_are_added(system: System) -> None:
    client = system.broker.client
    for _ in range(2):  # of two processes
        counters.add("too_large", 3)
        counters.flush(client)
    assert counters.read(client)["too_large"] == {"": 6}


def test_counters_that_redis_did_not_take_are_kept(system: System) -> None:
    (closed,) = free_ports(1)
    counters.add("too_large", 2)
    counters.flush(redis.Redis(port=closed))
    assert "too_large" not in counters.read(system.broker.client)
    counters.flush(system.broker.client)
    assert counters.read(system.broker.client)["too_large"] == {"": 2}
