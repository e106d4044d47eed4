"""Webhooks: every event, in order, signed, until the receiver has taken it."""

import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from mailpoll import audit, database, events, webhooks
from mailpoll.actors import deliver_events, forget_events, notify, retain
from mailpoll.models import (
    EmailEvent,
    EventType,
    WebhookDelivery,
    WebhookEndpoint,
)
from mailpoll.webhooks import delivery, endpoints, request
from tests.integration.conftest import SETS, run_system
from tests.integration.queue_entries import entries
from tests.integration.rows import change_accounts
from tests.integration.system import System, message, wait_until
from tests.integration.test_console import Browser
from tests.servers.dovecot import Dovecot
from tests.servers.receiver import Received, Receiver


@pytest.fixture(params=list(SETS))
def system(request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot) -> Iterator[System]:
    """Both sets, with receivers on this machine allowed."""
    variables = SETS[request.param](request, tmp_path)
    more = {"MAILPOLL_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8", "MAILPOLL_WEBHOOK_TIMEOUT": "2"}
    for system in run_system(variables, tmp_path, dovecot, **more):
        yield system
        with database.transaction():
            WebhookEndpoint.delete().execute()


def hook(system: System, receiver: Receiver, **fields: Any) -> Any:
    return system.post("/admin/webhooks", 201, url=receiver.url, **fields)


def row() -> WebhookEndpoint:
    with database.connected():
        return WebhookEndpoint.get()


def happen(count: int, kind: EventType = EventType.STORAGE_FALLBACK) -> None:
    for _ in range(count):
        with database.transaction():
            EmailEvent.add(kind)


def deliver() -> None:
    """One turn of the only endpoint, due or not."""
    with database.transaction():
        WebhookEndpoint.update(next_attempt_at=None).execute()
    webhooks.deliver(row().id, 10)


@contextmanager
def saying(answer: bytes) -> Iterator[str]:
    """A server that answers each request with these bytes and ends; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.recv(65_536)
                    with suppress(OSError):  # a long answer is not heard to its end
                        client.sendall(answer)
                        client.shutdown(socket.SHUT_WR)
                        while client.recv(65_536):
                            pass

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        listener.shutdown(socket.SHUT_RDWR)


# --- the way


@pytest.mark.queue
def test_mail_is_told_by_a_signed_request(system: System, address: str) -> None:
    with Receiver() as receiver:
        created = hook(system, receiver, types=["message.new"], imports=True, payload="fields")
        system.dovecot.deliver(address, message("hello"))
        account = system.add_account(address)
        system.work_until(lambda: receiver.received)
        (got,) = receiver.received
        data = Webhook(created["secret"]).verify(got.body, got.headers)
        with pytest.raises(WebhookVerificationError):
            Webhook(endpoints._new_secret()).verify(got.body, got.headers)
    assert data["type"] == "message.new"
    assert data["data"]["account_id"] == account
    assert data["data"]["message"]["subject"] == "hello"
    assert got.id == f"evt_{data['data']['id']}"
    shown = system.get(f"/admin/webhooks/{created['id']}")
    assert "secret" not in shown
    assert (shown["attempts"], shown["last_error"]) == (0, None)
    (logged,) = system.get(f"/admin/webhooks/{created['id']}/deliveries")["items"]
    assert (logged["outcome"], logged["status"], logged["event"]) == (
        "delivered",
        204,
        data["data"]["id"],
    )


@pytest.mark.parametrize(
    ("payload", "has"), [("ids", set()), ("fields", {"message"}), ("bodies", {"message"})]
)
def test_the_payload_is_as_large_as_it_was_asked_for(
    system: System, address: str, payload: str, has: set[str]
) -> None:
    with Receiver() as receiver:
        hook(system, receiver, types=["message.new"], imports=True, payload=payload, body_limit=10)
        system.dovecot.deliver(address, message("hello", "0123456789äöü\r\n"))
        system.poll_and_process(system.add_account(address))
        deliver()
        (got,) = receiver.received
    data = got.json["data"]
    assert {"message"} & data.keys() == has
    if payload == "bodies":
        assert (data["message"]["text"], data["message"]["truncated"]) == ("0123456789", True)
    elif payload == "fields":
        assert "text" not in data["message"]


def test_mail_that_is_deleted_while_it_is_told_of_does_not_stay_in_the_log(
    system: System, address: str
) -> None:
    def deletes(_: Received) -> tuple[int, dict[str, str]]:
        audit.act_as(audit.ITSELF)
        change_accounts(retention_days=30)
        retain.fn()
        return 200, {}

    with Receiver(answer=deletes) as receiver:
        created = hook(system, receiver, types=["message.new"], imports=True, payload="bodies")
        old = datetime.now(UTC) - timedelta(days=40)
        mail = message("hello", "secret words")
        system.dovecot.deliver(address, mail, received_at=old.timestamp())
        system.poll_and_process(system.add_account(address))
        deliver()
        assert b"secret words" in receiver.received[0].body
    (logged,) = system.get(f"/admin/webhooks/{created['id']}/deliveries")["items"]
    assert (logged["outcome"], logged["request"], logged["answer"]) == ("delivered", "", None)


def test_an_endpoint_that_is_removed_during_a_request_ends_it(system: System, address: str) -> None:
    def removes(_: Received) -> tuple[int, dict[str, str]]:
        with database.transaction():
            WebhookEndpoint.delete().execute()
        return 200, {}

    with Receiver(answer=removes) as receiver:
        created = hook(system, receiver)
        happen(1)
        deliver()
        assert len(receiver.received) == 1
        created = hook(system, receiver)
        url = f"/admin/webhooks/{created['id']}/events/{events.last()}/redeliver"
        assert system.post(url, 404)["status"] == 404
        assert len(receiver.received) == 2


def test_filters_let_pass_what_they_name(system: System, address: str) -> None:
    other = f"other-{address}"
    system.dovecot.deliver(address, message("a"))
    system.dovecot.deliver(other, message("b"))
    account, second = system.add_account(address), system.add_account(other)
    with Receiver() as receiver:
        hook(system, receiver, types=["message.new"], accounts=[account], imports=True)
        for one in (account, second):
            system.poll_and_process(one)
        deliver()
        assert [got.json["data"]["account_id"] for got in receiver.received] == [account]
    assert row().position == events.last()


def test_imports_are_left_out_unless_they_are_asked_for(system: System, address: str) -> None:
    system.dovecot.deliver(address, message("old"))
    account = system.add_account(address)
    with Receiver() as receiver:
        hook(system, receiver, types=["message.new"])
        system.poll_and_process(account)
        system.dovecot.deliver(address, message("new"))
        system.poll_and_process(account)
        deliver()
        assert len(receiver.received) == 1


# --- order, repeats, failures


def test_events_come_in_order_and_none_is_lost_while_the_receiver_fails_now_and_then(
    system: System,
) -> None:
    answers = itertools.cycle([(200, {}), (500, {}), (200, {}), (503, {})])
    with Receiver(lambda _: next(answers)) as receiver:
        hook(system, receiver)
        happen(12)
        while row().position < events.last():
            deliver()
        taken = list(dict.fromkeys(receiver.ids))
        assert taken == [f"evt_{number}" for number in range(1, 13)]


@pytest.mark.parametrize("step", ["before the request", "after the request", "after the log"])
def test_a_crash_at_any_step_loses_no_delivery_and_a_repeat_has_the_same_id(
    system: System, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dead(BaseException):
        """The process ends here."""

    def dies(*args: Any, **kwargs: Any) -> Any:
        raise Dead

    real_send, real_log, real_move = delivery.send, delivery._log, delivery._move

    def sent_then_dies(*args: Any) -> Any:
        real_send(*args)
        raise Dead

    with Receiver() as receiver:
        hook(system, receiver)
        happen(3)
        if step == "before the request":
            monkeypatch.setattr(delivery, "send", dies)
        elif step == "after the request":
            monkeypatch.setattr(delivery, "send", sent_then_dies)
        else:
            monkeypatch.setattr(delivery, "_move", dies)
        with pytest.raises(Dead):
            deliver()
        assert row().position == 0
        monkeypatch.setattr(delivery, "send", real_send)
        monkeypatch.setattr(delivery, "_log", real_log)
        monkeypatch.setattr(delivery, "_move", real_move)
        with database.transaction():
            WebhookEndpoint.update(lease_until=None).execute()
        deliver()
        assert list(dict.fromkeys(receiver.ids)) == ["evt_1", "evt_2", "evt_3"]


def test_events_are_kept_until_an_endpoint_has_them_unless_it_is_disabled(system: System) -> None:
    with Receiver(lambda got: (200 if got.id in ("evt_1", "evt_2") else 500, {})) as receiver:
        hook(system, receiver)
        happen(5)
        deliver()
    with database.transaction():
        EmailEvent.update(created_at=database.now() - timedelta(days=400)).execute()
    forget_events.fn()
    assert [event.number for event in events.read(0, 10)] == [3, 4, 5]
    with database.transaction():
        WebhookEndpoint.update(state="paused").execute()
    forget_events.fn()
    assert [event.number for event in events.read(0, 10)] == [3, 4, 5]
    with database.transaction():
        WebhookEndpoint.update(state="disabled").execute()
    forget_events.fn()
    assert events.read(0, 10) == []


def test_two_deliverers_at_once_send_nothing_twice(system: System) -> None:
    with Receiver(delay=0.02) as receiver:
        hook(system, receiver)
        happen(10)
        turns = [threading.Thread(target=webhooks.deliver, args=(row().id, 10)) for _ in range(4)]
        for turn in turns:
            turn.start()
        for turn in turns:
            turn.join()
        assert receiver.ids == [f"evt_{number}" for number in range(1, 11)]


def test_a_failing_receiver_is_tried_later_each_time_and_at_its_own_word(system: System) -> None:
    headers: dict[str, str] = {}
    with Receiver(lambda _: (503, headers)) as receiver:
        hook(system, receiver)
        happen(1)
        pauses = []
        for _ in range(4):
            deliver()
            pauses.append((row().next_attempt_at - database.now()).total_seconds())
        assert [
            round(p) in range(int(e * 0.7), int(e * 1.3) + 1)
            for p, e in zip(pauses, (5, 10, 20, 40), strict=True)
        ] == [True] * 4
        headers["Retry-After"] = "700"
        deliver()
        assert 690 < (row().next_attempt_at - database.now()).total_seconds() <= 700
        # Nothing goes out before its time
        before = len(receiver.received)
        assert webhooks.deliver(row().id, 10) is None
        assert len(receiver.received) == before


def test_the_next_attempt_comes_when_it_is_time_and_not_a_moment_before(system: System) -> None:
    with Receiver(lambda _: (500, {})) as receiver:
        hook(system, receiver)
        happen(1)
        for _ in range(20):
            with database.transaction():
                WebhookEndpoint.update(next_attempt_at=None, attempts=0).execute()
            system.broker.flush("webhooks")
            system.broker.flush("webhooks.DQ")
            deliver_events.fn(row().id)
            (entry,) = entries(system, "webhooks")
            assert entry.eta is not None
            assert entry.eta >= row().next_attempt_at.timestamp() * 1_000


def test_an_endpoint_without_news_is_not_written_to(system: System) -> None:
    with Receiver() as receiver:
        hook(system, receiver)
        happen(1)
        deliver()
        before = row().lease_token
        deliver_events.fn(row().id)
        assert row().lease_token == before


def test_an_endpoint_that_fails_for_a_day_is_disabled_and_goes_on_when_it_is_made_active(
    system: System,
) -> None:
    up = False
    with Receiver(lambda _: (200 if up else 500, {})) as receiver:
        created = hook(system, receiver)
        happen(2)
        deliver()
        with database.transaction():
            day = timedelta(hours=25)
            WebhookEndpoint.update(failing_since=database.now() - day).execute()
        deliver()
        shown = system.get(f"/admin/webhooks/{created['id']}")
        assert shown["state"] == "disabled"
        assert "nothing but failures" in shown["last_error"]
        up = True
        path = f"/admin/webhooks/{created['id']}"
        answer = system.api.simulate_patch(path, json={"state": "active"})
        assert answer.status_code == 200, answer.text
        deliver()
        assert receiver.ids[-2:] == ["evt_1", "evt_2"]


def test_410_ends_an_endpoint_at_once(system: System) -> None:
    with Receiver(lambda _: (410, {})) as receiver:
        hook(system, receiver)
        happen(2)
        deliver()
        assert len(receiver.received) == 1
    assert row().state == "disabled"


def test_an_event_that_the_receiver_refuses_is_set_aside_and_can_be_sent_again(
    system: System,
) -> None:
    picky = True

    def answer(got: Received) -> tuple[int, dict[str, str]]:
        return (422 if picky and got.id == "evt_2" else 200), {}

    with Receiver(answer) as receiver:
        created = hook(system, receiver)
        happen(3)
        for _ in range(4):
            deliver()
        assert receiver.ids == ["evt_1", "evt_2", "evt_2", "evt_2", "evt_3"]
        path = f"/admin/webhooks/{created['id']}"
        (refused,) = system.get(f"{path}/deliveries", outcome="refused")["items"]
        assert (refused["event"], refused["status"]) == (2, 422)
        picky = False
        again = system.post(f"{path}/events/2/redeliver")
        assert (again["outcome"], receiver.ids[-1]) == ("delivered", "evt_2")


def test_a_receiver_that_refuses_everything_is_disabled_and_loses_nothing(system: System) -> None:
    well = False
    with Receiver(lambda _: (200 if well else 404, {})) as receiver:
        created = hook(system, receiver)
        happen(8)
        while row().failing_since is None or row().refused < delivery.REFUSED_IN_A_ROW:
            deliver()
        # Then it stands before the first event that was refused, and fails like any other
        assert (row().position, row().state) == (0, "active")
        assert webhooks.received() == 0
        deliver()
        assert receiver.ids[-1] == "evt_1"
        with database.transaction():
            day = database.now() - timedelta(hours=25)
            WebhookEndpoint.update(failing_since=day).execute()
        deliver()
        assert (row().position, row().state) == (0, "disabled")
        well = True
        path = f"/admin/webhooks/{created['id']}"
        assert system.api.simulate_patch(path, json={"state": "active"}).status_code == 200
        deliver()
        assert receiver.ids[-8:] == [f"evt_{number}" for number in range(1, 9)]


def test_refused_events_with_accepted_ones_between_block_nothing(system: System) -> None:
    with Receiver(lambda got: (200 if int(got.id[4:]) % 3 == 0 else 400, {})) as receiver:
        hook(system, receiver)
        happen(15)
        while row().position < events.last():
            deliver()
            assert row().refused < delivery.REFUSED_IN_A_ROW
        taken = list(dict.fromkeys(receiver.ids))
        assert taken == [f"evt_{number}" for number in range(1, 16)]


def test_a_wrong_signature_is_no_refusal_of_an_event(system: System) -> None:
    with Receiver(lambda _: (401, {})) as receiver:
        hook(system, receiver)
        happen(2)
        for _ in range(5):
            deliver()
        assert set(receiver.ids) == {"evt_1"}
    assert row().failing_since is not None


def test_what_is_no_http_is_a_failure_with_a_row_in_the_log(system: System) -> None:
    with saying(b"220 mail.example.org ESMTP\r\n") as url:
        created = system.post("/admin/webhooks", 201, url=url)
        happen(1)
        deliver()
    (logged,) = system.get(f"/admin/webhooks/{created['id']}/deliveries")["items"]
    assert (logged["outcome"], logged["status"]) == ("failed", None)
    assert row().attempts == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n" + b"a" * 900_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\nand then it breaks",
    ],
    ids=["long", "broken"],
)
def test_a_2xx_status_is_a_success_whatever_follows(system: System, answer: bytes) -> None:
    with saying(answer) as url:
        system.post("/admin/webhooks", 201, url=url)
        happen(1)
        deliver()
    assert row().position == 1


@pytest.mark.parametrize("what", ["url", "secret", "replay"])
def test_what_is_done_to_an_endpoint_holds_for_the_delivery_that_is_under_way(
    system: System, what: str
) -> None:
    with Receiver() as new:
        acts: list[Callable[[], Any]] = []

        def answer(got: Received) -> tuple[int, dict[str, str]]:
            if got.id == "evt_2" and acts:
                acts.pop()()
            return 200, {}

        with Receiver(answer) as old:
            created = hook(system, old)
            happen(3)
            path = f"/admin/webhooks/{created['id']}"
            does: dict[str, Callable[[], Any]] = {
                "url": lambda: system.api.simulate_patch(path, json={"url": new.url}),
                "secret": lambda: system.post(f"{path}/secret"),
                "replay": lambda: system.post(f"{path}/replay", 202, after=0),
            }
            acts.append(does[what])
            # When it is done during the second request, which then moves nothing any more
            assert webhooks.deliver(row().id, 10) == 0
            assert row().position == (0 if what == "replay" else 1)
            deliver()
            if what == "url":
                assert (old.ids, new.ids) == (["evt_1", "evt_2"], ["evt_2", "evt_3"])
            else:
                again = old.received[2:]
                first = 1 if what == "replay" else 2
                assert [got.id for got in again] == [f"evt_{n}" for n in range(first, 4)]


def test_events_that_another_reader_has_seen_first_are_told_at_once(system: System) -> None:
    with Receiver() as receiver:
        hook(system, receiver)
        happen(1)
        deliver()
        system.broker.flush("webhooks")
        # When somebody reads the log between the event and the look of who wrote it
        with database.transaction():
            database.after_commit(events.number_all)
            EmailEvent.add(EventType.STORAGE_FALLBACK)
        assert [entry.args for entry in entries(system, "webhooks")] == [(row().id,)]


def test_every_writer_of_events_wakes_the_endpoints(system: System, address: str) -> None:
    account = system.add_account(address)
    with Receiver() as receiver:
        hook(system, receiver)
        system.post(f"/admin/email-accounts/{account}/pause")
        assert [entry.args for entry in entries(system, "webhooks")] == [(row().id,)]
        # And not one that writes nothing, or whose transaction rolls back
        deliver()
        system.broker.flush("webhooks")
        with pytest.raises(ZeroDivisionError), database.transaction():
            EmailEvent.add(EventType.STORAGE_FALLBACK)
            raise ZeroDivisionError
        with database.transaction():
            pass
        assert entries(system, "webhooks") == []


def test_a_rate_bounds_the_deliveries_of_an_endpoint(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    # Its own clock: other threads sleep too
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append)
    monkeypatch.setattr(delivery, "time", clock)
    with Receiver() as receiver:
        hook(system, receiver, rate=2)
        happen(3)
        deliver()
        assert len(receiver.received) == 3
    assert [0 < pause <= 0.5 for pause in pauses] == [True] * 3


def test_a_message_is_told_of_without_reading_its_texts(system: System, address: str) -> None:
    system.dovecot.deliver(address, message("hello"))
    system.poll_and_process(system.add_account(address))
    with database.connected():
        endpoint = WebhookEndpoint(payload="fields")
        told = request._message(
            EmailEvent.get(EmailEvent.type == "message.new").message_id, endpoint
        )
        assert told is not None
        assert told["subject"] == "hello"
    assert not {"text_body", "html_body", "headers"} & {one.name for one in request.FIELDS}


@pytest.mark.queue
def test_a_dead_and_a_slow_endpoint_delay_no_other(system: System) -> None:
    with Receiver(lambda _: (500, {})) as dead, Receiver(delay=1.5) as slow, Receiver() as good:
        for receiver in (dead, slow, good):
            hook(system, receiver)
        happen(20)
        for one in webhooks.behind():
            deliver_events.send(one)
        system.work_until(lambda: len(good.received) == 20)
        assert good.ids == [f"evt_{number}" for number in range(1, 21)]
        assert len(slow.received) < 20


@pytest.mark.queue
def test_more_slow_endpoints_than_threads_do_not_hold_up_another(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "TURN", 0.2)
    with Receiver(delay=0.2) as slow, Receiver() as good:
        for _ in range(8):
            hook(system, slow)
        hook(system, good)
        happen(100)
        system.work_until(lambda: len(good.received) == 100, threads=4)
        # They were given turns as well, and have far to go
        assert 0 < len(slow.received) < 800
    assert good.ids == [f"evt_{number}" for number in range(1, 101)]


# --- what operators do


def test_a_replay_sends_the_same_ids_again(system: System) -> None:
    with Receiver() as receiver:
        created = hook(system, receiver)
        happen(4)
        deliver()
        path = f"/admin/webhooks/{created['id']}/replay"
        assert system.post(path, 202, after=2)["position"] == 2
        deliver()
        assert receiver.ids[4:] == ["evt_3", "evt_4"]
        assert system.post(path, 202, since="2020-01-01T00:00:00Z")["position"] == 0
        deliver()
        assert receiver.ids[6:] == [f"evt_{number}" for number in range(1, 5)]
        assert system.post(path, 422)["errors"]


def test_a_replay_since_a_time_begins_with_the_first_event_of_then(system: System) -> None:
    with Receiver() as receiver:
        created = hook(system, receiver)
        happen(4)
        deliver()
        with database.transaction():
            for event in EmailEvent.select():
                event.created_at = datetime(2026, 11, event.number, 12, tzinfo=UTC)
                event.save()
        path = f"/admin/webhooks/{created['id']}/replay"
        for since, position in (
            ("2026-11-03T12:00:00Z", 2),
            ("2026-11-03T13:00:00+01:00", 2),
            ("2026-11-03T12:00:01Z", 3),
            ("2026-12-01T00:00:00Z", 4),
        ):
            assert system.post(path, 202, since=since)["position"] == position
        system.post(path, 202, since="2026-11-03T00:00:00Z")
        deliver()
        assert receiver.ids[4:] == ["evt_3", "evt_4"]


def test_a_rotated_secret_signs_beside_the_one_before(system: System) -> None:
    with Receiver() as receiver:
        created = hook(system, receiver)
        rotated = system.post(f"/admin/webhooks/{created['id']}/secret")
        assert rotated["secret"] != created["secret"]
        happen(1)
        deliver()
        (got,) = receiver.received
        for secret in (created["secret"], rotated["secret"]):
            Webhook(secret).verify(got.body, got.headers)
        with database.transaction():
            WebhookEndpoint.update(old_secret_until=database.now()).execute()
        happen(1)
        deliver()
        got = receiver.received[-1]
        Webhook(rotated["secret"]).verify(got.body, got.headers)
        with pytest.raises(WebhookVerificationError):
            Webhook(created["secret"]).verify(got.body, got.headers)


def test_a_test_event_tells_what_the_receiver_answers(system: System) -> None:
    with Receiver(lambda _: (418, {})) as receiver:
        created = hook(system, receiver)
        done = system.post(f"/admin/webhooks/{created['id']}/test")
        assert (done["outcome"], done["status"]) == ("failed", 418)
        Webhook(created["secret"]).verify(receiver.received[0].body, receiver.received[0].headers)
    done = system.post(f"/admin/webhooks/{created['id']}/test")
    assert done["outcome"] == "failed"
    assert done["error"]
    assert row().position == 0


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://example.org/", "https://", "example.org", "https://u:p@example.org/"),
        *("https://a:b/", "https://example.org/a b", "https://example.org/a\nb"),
    ],
)
def test_a_url_that_cannot_work_is_refused_by_name(system: System, url: str) -> None:
    problem = system.post("/admin/webhooks", 422, url=url)
    assert problem["errors"][0]["field"] == "url"


def test_requests_go_to_no_private_address_and_follow_no_redirect(system: System) -> None:
    for url in ("https://10.0.0.1/", "http://[::1]:9/", "https://169.254.169.254/", "http://0/"):
        created = system.post("/admin/webhooks", 201, url=url)
        done = system.post(f"/admin/webhooks/{created['id']}/test")
        assert (done["outcome"], done["status"]) == ("failed", None)
        assert "private" in done["error"]
    with Receiver() as inner:
        location = {"Location": inner.url}
        with Receiver(lambda _: (302, location)) as receiver:
            created = hook(system, receiver)
            done = system.post(f"/admin/webhooks/{created['id']}/test")
        assert (done["outcome"], done["status"]) == ("failed", 302)
        assert inner.received == []


def test_unanswered_requests_end_in_time(system: System) -> None:
    with Receiver(delay=30) as receiver:
        created = hook(system, receiver)
        done = system.post(f"/admin/webhooks/{created['id']}/test")
        assert done["outcome"] == "failed"
        assert done["duration_ms"] < 10_000


def test_old_deliveries_are_forgotten(system: System) -> None:
    with Receiver() as receiver:
        hook(system, receiver)
        happen(3)
        deliver()
    with database.transaction():
        old = database.now() - timedelta(days=8)
        WebhookDelivery.update(created_at=old).where(WebhookDelivery.event_number < 3).execute()
    webhooks.forget(7)
    with database.connected():
        assert [one.event_number for one in WebhookDelivery.select()] == [3]


def test_a_webhook_is_listed_changed_and_removed(system: System) -> None:
    with Receiver() as receiver:
        created = hook(system, receiver, description="ours", rate=5)
        path = f"/admin/webhooks/{created['id']}"
        assert system.get("/admin/webhooks")["items"][0]["description"] == "ours"
        answer = system.api.simulate_patch(path, json={"state": "paused", "rate": None})
        assert (answer.json["state"], answer.json["rate"]) == ("paused", None)
        happen(1)
        deliver()
        assert receiver.received == []
        assert system.get(path)["behind"] == 1
        assert system.api.simulate_patch(path, json={"url": None}).status_code == 422
        for refused in (
            {"url": "https://example.org/gr\u00fc\u00dfe"},
            {"types": []},
            {"description": "a\0b"},
        ):
            answer = system.api.simulate_patch(path, json=refused)
            assert (answer.status_code, answer.json["errors"][0]["field"]) == (422, *refused)
        assert system.api.simulate_delete(path).status_code == 204
        assert system.api.simulate_get(path).status_code == 404
        wait_until(lambda: system.get("/admin/webhooks")["items"] == [])


def test_the_console_tests_an_endpoint_lists_its_deliveries_and_sends_again(
    system: System,
) -> None:
    with Receiver() as receiver:
        created = hook(system, receiver)
        browser, page = Browser(system), f"/webhooks/{created['id']}"
        assert "None yet." in browser.get(page)
        assert "<b>Delivered</b>" in browser.post(f"{page}/do/test", 200).text
        happen(1)
        deliver()
        assert "storage.fallback" in browser.get(f"{page}?outcome=delivered")
        (logged,) = (
            one
            for one in system.get(f"/admin{page}/deliveries")["items"]
            if one["type"] == "storage.fallback"
        )
        browser.post(f"{page}/do/redeliver", 200, event=logged["event"])
        assert receiver.received[-1].json["type"] == "storage.fallback"
        assert len(receiver.received) == 3
        assert "whsec_" in browser.post(f"{page}/do/secret", 200).text


def test_a_command_in_a_shell_wakes_the_endpoints_too(system: System, address: str) -> None:
    system.add_account(address)
    with Receiver() as receiver:
        hook(system, receiver)
        system.broker.flush("webhooks")
        shell = [sys.executable, "-m", "mailpoll", "accounts", "pause", address]
        subprocess.run(shell, check=True, capture_output=True)
        assert [entry.args for entry in entries(system, "webhooks")] == [(row().id,)]
