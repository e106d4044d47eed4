"""For operators: figures of all accounts, queues and tasks, health, metrics."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import falcon
from prometheus_client import generate_latest
from prometheus_client.core import CollectorRegistry
from spectree import Response

from .. import __version__, alarms, audit, database, migrate, queues, runtime, stats
from ..broker import Broker
from ..middleware import task_stats
from ..models import Scope
from ..settings import settings
from . import problems, schemas
from .documents import OPERATIONS, api, route, send
from .metrics import Figures

#: Dead messages that are listed.
DEAD = 100


class OverallStatistics:
    @route(Scope.READ, resp=Response(HTTP_200=schemas.Stats), tags=[OPERATIONS])
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Figures of all mailboxes"""
        send(resp, schemas.Stats(**stats.overall_stats()))


class HourList:
    @route(
        Scope.READ,
        query=schemas.HoursQuery,
        resp=Response(HTTP_200=schemas.Hours),
        tags=[OPERATIONS],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Messages stored in each of the latest hours

        Oldest first; the last one is not over. Deleted accounts are in it.
        """
        query: schemas.HoursQuery = req.context.query
        items = [schemas.Hour(**one) for one in stats.hours(query.hours)]
        send(resp, schemas.Hours(items=items))


class SettingList:
    @route(Scope.ADMIN, resp=Response(HTTP_200=schemas.SettingList), tags=[OPERATIONS])
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The configuration of this process, without its secrets"""
        config = settings()
        items = [schemas.Setting(**asdict(one)) for one in config.public()]
        found = schemas.SettingList(version=__version__, items=items, concerns=config.concerns())
        send(resp, found)


class TaskList:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    @route(Scope.READ, resp=Response(HTTP_200=schemas.Tasks), tags=[OPERATIONS])
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Queues, runs of each task, and dead messages"""
        sizes = queues.sizes(self._broker)
        runs = task_stats.read(self._broker.client)
        dead = queues.dead(self._broker, DEAD)
        send(
            resp,
            schemas.Tasks(
                queues=[
                    schemas.Queue(
                        queue=size.queue,
                        waiting=size.waiting,
                        delayed=size.delayed,
                        running=size.running,
                        dead=size.dead,
                    )
                    for size in sizes
                ],
                tasks=[_task(actor, counts) for actor, counts in sorted(runs.items())],
                dead=[_dead(message) for message in dead],
            ),
        )


def _task(actor: str, counts: dict[str, int]) -> schemas.TaskStats:
    mean = counts["microseconds"] / counts["runs"] / 1_000 if counts["runs"] else 0.0
    return schemas.TaskStats(
        actor=actor,
        runs=counts["runs"],
        failures=counts["failures"],
        skipped=counts["skipped"],
        mean_ms=round(mean, 3),
    )


def _dead(message: queues.DeadMessage) -> schemas.DeadTask:
    return schemas.DeadTask(
        id=message.id,
        queue=message.queue,
        actor=message.actor,
        args=[arg if isinstance(arg, int) else None for arg in message.args],
        failed_at=datetime.fromtimestamp(message.failed_at / 1_000, UTC),
        retries=message.retries,
        reason=message.reason,
    )


class DeadRetry:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    @route(
        Scope.OPERATE,
        resp=Response("HTTP_202", HTTP_404=schemas.Problem),
        tags=[OPERATIONS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response, task_id: str) -> None:
        """Enqueue a dead message once more"""
        if not queues.revive(self._broker, task_id):
            raise problems.not_found("dead message")
        audit.record("task.retry", "task", task_id)
        resp.status = falcon.HTTP_202
        resp.media = {"id": task_id, "enqueued": True}


class AlarmList:
    @route(Scope.READ, resp=Response(HTTP_200=schemas.Alarms), tags=[OPERATIONS])
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Alarms that hold, and those that are over, newest first"""
        items = [
            schemas.Alarm(
                name=alarm.name,
                holds=alarm.cleared_at is None,
                since=alarm.since,
                seen_at=alarm.seen_at,
                cleared_at=alarm.cleared_at,
                amount=alarm.amount,
                words=alarm.words,
                advice=alarms.ALARMS[alarm.name].advice,
                notified_at=alarm.notified_at,
            )
            for alarm in alarms.known()
        ]
        send(resp, schemas.Alarms(items=items))


class Health:
    @api.validate(resp=Response(HTTP_200=schemas.Health), security={}, tags=[OPERATIONS])
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Whether this process answers"""
        send(resp, schemas.Health(status="ok"))


class Readiness:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    @route(
        Scope.READ,
        resp=Response(HTTP_200=schemas.Readiness, HTTP_503=schemas.Readiness),
        tags=[OPERATIONS],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Whether the database, the queue and the store answer, each by name"""
        parts = {"database": _database, "queue": self._broker.client.ping, "storage": _storage}
        found = {name: _answers(check) for name, check in parts.items()}
        send(resp, schemas.Readiness(ready=all(found.values()), **found))
        if not all(found.values()):
            resp.status = falcon.HTTP_503


def _answers(check: Any) -> bool:
    try:
        check()
    except Exception:  # whatever is wrong with a part, it is not ready
        return False
    return True


def _database() -> None:
    if migrate.pending():
        raise RuntimeError("migrations have not run")
    with database.connected():
        database.proxy.execute_sql("SELECT 1")


def _storage() -> None:
    storage = runtime.storage()
    # With a fall-back the store may be away: mail is kept all the same.
    if not storage.has_fallback:
        storage.check()


class Metrics:
    def __init__(self, broker: Broker) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(Figures(broker))

    @route(Scope.READ, resp=Response("HTTP_200"), tags=[OPERATIONS])
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Prometheus metrics"""
        resp.content_type = "text/plain; version=0.0.4; charset=utf-8"
        resp.data = generate_latest(self._registry)


def install(app: "falcon.App[Any, Any]", broker: Broker) -> None:
    app.add_route("/admin/stats", OverallStatistics())
    app.add_route("/admin/stats/hours", HourList())
    app.add_route("/admin/settings", SettingList())
    app.add_route("/admin/tasks", TaskList(broker))
    app.add_route("/admin/tasks/dead/{task_id}/retry", DeadRetry(broker))
    app.add_route("/admin/alarms", AlarmList())
    app.add_route("/healthz", Health())
    app.add_route("/readyz", Readiness(broker))
    app.add_route("/metrics", Metrics(broker))
