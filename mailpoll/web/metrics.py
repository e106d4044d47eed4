"""Prometheus metrics, read from the database and the queue when they are asked for.

Labels never carry addresses, host names or ids of accounts.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from .. import alarms, counters, keys, queues, retention, runtime, stats
from ..actors.poll import LATENESS, OWN_FAILURES
from ..actors.process import QUARANTINED
from ..broker import Broker
from ..imap import Fault
from ..middleware import task_stats
from ..models import Mark, MarkName
from ..policy import Rule

#: Counters: what they count, and the label with the values that it has from the start.
COUNTED: dict[str, tuple[str, str, Iterable[str]]] = {
    "poll_failures": ("Failed polls", "reason", (*Fault, *OWN_FAILURES)),
    "sweeper_reenqueued": ("Messages enqueued again because the queue had lost them", "", ()),
    "checksum_mismatch": ("Blobs whose bytes were not what their name says", "", ()),
    "quarantined": ("Messages that were given up on", "reason", QUARANTINED),
    "too_large": ("Messages over the limit of size", "", ()),
    "fence_refused": ("Transactions refused because the account's lease was lost", "", ()),
    "duplicate_delivery": (
        "Queue messages whose work was done or under way",
        "kind",
        ("poll", "message"),
    ),
    "retention_deleted": ("Messages whose time was over, deleted by rule", "rule", Rule),
    "hold_refusals": (
        "Deletions that a legal hold refused: of accounts, and runs of retention that left mail",
        "deletion",
        ("account", "retention"),
    ),
    "notifications": ("Messages to operators, by receiver", "result", ("sent", "failed")),
}
#: Seconds for which the rows of each key are remembered: counting them reads every account.
REMEMBERED = 60.0


class Figures(Collector):
    """All of mailpoll's metrics, the same from every web process.

    Parameters:
      broker: whose queues are counted.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._key_rows: dict[str, int] = {}
        self._counted_keys = float("-inf")

    def describe(self) -> list[Metric]:
        """Nothing is asked of the database when the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        figures = stats.overall_stats()
        yield _gauge("accounts", "Accounts by state", "state", figures["accounts"])
        yield _gauge("messages", "Messages by status", "status", figures["by_status"])
        yield _gauge("blobs", "Blobs by store", "storage_type", figures["by_storage_type"])
        yield _gauge("unfetched", "UIDs without a message", "verdict", figures["unfetched"])
        yield _gauge("folders", "Folders by proof", "proof", figures["folders"])
        yield _value("bytes", "Bytes of raw messages", figures["bytes"])
        yield _value("attachments", "Attachments", figures["attachments"])
        yield _value(
            "late_accounts",
            "Active accounts whose poll is over a minute overdue",
            figures["late_accounts"],
        )
        yield _value(
            "oldest_pending_seconds",
            "Age of the oldest message that waits to be processed",
            figures["oldest_pending_seconds"],
        )
        yield _value(
            "stuck_messages",
            "Stored messages that nobody has worked on for an hour",
            stats.stuck_messages(),
        )
        yield from self._stores(figures["storage_circuit_open"])
        yield from self._marks()
        yield _value(
            "retention_waiting_seconds",
            "Since the account that retention left alone longest was gone through; 0: it has none",
            retention.waiting(),
        )
        yield _gauge("delete_jobs", "Running deletions by step", "step", stats.running_deletions())
        yield _gauge("key_rows", "Stored secrets by their key", "key_id", self._rows_of_keys())
        yield from self._redis()
        counters.flush(self._broker.client)
        counted = counters.read(self._broker.client)
        yield from _counters(counted)
        yield _lateness(counted)
        yield from _tasks(task_stats.by_actor(counted))
        yield from _scrub(figures["scrub"])

    def _stores(self, circuit_open: bool) -> Iterator[Metric]:
        blobs, age = stats.fallen_back()
        yield _value("fallback_blobs", "Rows whose blobs wait in local files", blobs)
        yield _value("fallback_oldest_seconds", "For how long the oldest of them waits", age)
        standing = alarms.standing()
        yield _gauge("alarm", "1 while an alarm holds", "name", standing)
        yield _value(
            "storage_circuit_open",
            "1 while the object store counts as away",
            circuit_open or standing["storage_away"],
        )

    def _marks(self) -> Iterator[Metric]:
        """What happened last, and how the clocks go."""
        marks = Mark.all()
        tick = alarms.tick_age()
        yield _value(
            "scheduler_last_tick_seconds",
            "Since a tick of the scheduler was carried out; infinite if none ever was",
            float("inf") if tick is None else tick,
        )
        checked, sound = marks.get(MarkName.FSCK), marks.get(MarkName.FSCK_OK)
        yield _value(
            "fsck_last_ok_timestamp_seconds",
            "When mailpoll fsck last found no difference; 0: never",
            sound.at.timestamp() if sound else 0,
        )
        yield _value(
            "fsck_differences",
            "Differences that the last check left",
            checked.value if checked else 0,
        )
        offsets = {"web": stats.clock_offset()}
        if clock := marks.get(MarkName.CLOCK):
            offsets["worker"] = clock.value / 1_000
        yield _gauge(
            "clock_offset_seconds",
            "How far clocks are ahead of the database's; of workers, that of the last tick",
            "process",
            offsets,
        )

    def _rows_of_keys(self) -> dict[str, int]:
        if time.monotonic() - self._counted_keys > REMEMBERED:
            self._key_rows, self._counted_keys = _key_rows(), time.monotonic()
        return self._key_rows

    def _redis(self) -> Iterator[Metric]:
        family = _family("queue_messages", "Messages in the queues", "queue", "kind")
        for size in queues.sizes(self._broker):
            for kind in ("waiting", "delayed", "running", "dead"):
                family.add_metric([size.queue, kind], getattr(size, kind))
        yield family
        state = queues.redis_state(self._broker)
        yield _value("redis_memory_ratio", "Share of Redis' memory that is in use", state.memory)
        yield _value("redis_policy_ok", "1 if Redis throws no keys away when full", state.keeps)


def _key_rows() -> dict[str, int]:
    """Of the ring's keys, those with nothing too, and of keys that are missing."""
    used = {name: sum(columns.values()) for name, columns in keys.counts().items()}
    return dict.fromkeys(runtime.keyring().ids, 0) | used


def _counters(counted: dict[str, dict[str, int]]) -> Iterator[Metric]:
    for name, (text, label, values) in COUNTED.items():
        labels = [label] if label else []
        family = CounterMetricFamily(f"mailpoll_{name}", text, labels=labels)
        amounts = dict.fromkeys(values if label else ("",), 0) | counted.get(name, {})
        for value, amount in amounts.items():
            family.add_metric([value] if label else [], amount)
        yield family


def _lateness(counted: dict[str, dict[str, int]]) -> Metric:
    found = counted.get("poll_lateness", {})
    total, buckets = 0, []
    for bound, label in (*((str(one), str(float(one))) for one in LATENESS), ("", "+Inf")):
        total += found.get(bound, 0)
        buckets.append((label, float(total)))
    family = HistogramMetricFamily(
        "mailpoll_poll_lateness_seconds", "How late due polls began", labels=[]
    )
    milliseconds = counted.get("poll_lateness_ms", {}).get("", 0)
    family.add_metric([], buckets, milliseconds / 1_000)
    return family


def _tasks(found: dict[str, dict[str, int]]) -> Iterator[Metric]:
    for name in ("runs", "failures", "skipped"):
        family = CounterMetricFamily(f"mailpoll_task_{name}", f"Task {name}", labels=["actor"])
        for actor, counts in found.items():
            family.add_metric([actor], counts[name])
        yield family
    seconds = CounterMetricFamily("mailpoll_task_seconds", "Time spent in tasks", labels=["actor"])
    for actor, counts in found.items():
        seconds.add_metric([actor], counts["microseconds"] / 1e6)
    yield seconds


def _scrub(figures: dict[str, Any]) -> Iterator[Metric]:
    for name, text in (
        ("blobs", "Blobs that were read back and hashed"),
        ("bytes", "Bytes of them"),
        ("corrupt", "Blobs found with other bytes than were stored"),
        ("missing", "Blobs not found where they were stored"),
        ("healed", "Damaged blobs that were healed"),
    ):
        yield CounterMetricFamily(f"mailpoll_scrub_{name}", text, value=figures[name])
    finished = figures["finished_at"]
    for name, text, value in (
        ("damaged", "Blobs that are damaged now", figures["damaged"]),
        ("progress", "How far the round is, from 0 to 1", figures["progress"]),
        (
            "finished_timestamp_seconds",
            "When everything had been read back last, 0 if never",
            finished.timestamp() if finished else 0,
        ),
    ):
        yield GaugeMetricFamily(f"mailpoll_scrub_{name}", text, value=value)


def _family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"mailpoll_{name}", text, labels=labels)


def _value(name: str, text: str, value: float) -> Metric:
    family = _family(name, text)
    family.add_metric([], float(value))
    return family


def _gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = _family(name, text, label)
    for value, amount in values.items():
        family.add_metric([value], float(amount))
    return family
