"""Prometheus metrics, read from the database and the queue when they are asked for.

Labels never carry addresses or host names.
"""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .. import queues, stats
from ..broker import Broker
from ..middleware import task_stats


class Figures(Collector):
    """All of mailpoll's metrics, the same from every web process.

    Parameters:
      broker: whose queues are counted.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def describe(self) -> list[Metric]:
        """Nothing is asked of the database when the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        figures = stats.overall_stats()
        yield _gauge("mailpoll_accounts", "Accounts by state", "state", figures["accounts"])
        yield _gauge("mailpoll_messages", "Messages by status", "status", figures["by_status"])
        yield _gauge("mailpoll_blobs", "Blobs by store", "storage_type", figures["by_storage_type"])
        yield _gauge(
            "mailpoll_unfetched", "UIDs without a message", "verdict", figures["unfetched"]
        )
        yield _gauge("mailpoll_folders", "Folders by proof", "proof", figures["folders"])
        for name, text in (
            ("bytes", "Bytes of raw messages"),
            ("attachments", "Attachments"),
            ("late_accounts", "Active accounts whose poll is over a minute overdue"),
            ("oldest_pending_seconds", "Age of the oldest message that waits to be processed"),
            ("storage_circuit_open", "1 while the object store counts as away"),
        ):
            yield GaugeMetricFamily(f"mailpoll_{name}", text, value=float(figures[name]))
        yield self._queues()
        yield from self._tasks()

    def _queues(self) -> Metric:
        family = GaugeMetricFamily(
            "mailpoll_queue_messages", "Messages in the queues", labels=["queue", "kind"]
        )
        for size in queues.sizes(self._broker):
            for kind in ("waiting", "delayed", "running", "dead"):
                family.add_metric([size.queue, kind], getattr(size, kind))
        return family

    def _tasks(self) -> Iterator[Metric]:
        found = task_stats.read(self._broker.client)
        for name in ("runs", "failures", "skipped"):
            family = CounterMetricFamily(f"mailpoll_task_{name}", f"Task {name}", labels=["actor"])
            for actor, counts in found.items():
                family.add_metric([actor], counts[name])
            yield family
        seconds = CounterMetricFamily(
            "mailpoll_task_seconds", "Time spent in tasks", labels=["actor"]
        )
        for actor, counts in found.items():
            seconds.add_metric([actor], counts["microseconds"] / 1e6)
        yield seconds


def _gauge(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, amount in values.items():
        family.add_metric([value], amount)
    return family
