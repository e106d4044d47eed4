"""``/admin/events``: what happened, as pages, by long polling, or as a stream."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import falcon
from spectree import Response

from .. import events
from ..models import Scope
from . import problems, schemas
from .accounts import account_or_404
from .documents import EVENTS, route, send

#: Seconds until a stream ends, and its reader comes again with ``Last-Event-ID``.
STREAM = 600
#: Seconds between two signs of life of a stream without news.
PULSE = 15
#: Seconds after which a stream asks again whether its reader's key still holds.
CHECK = 5.0


class Waiting:
    """A bound on requests that hold a thread while they wait for news.

    Parameters:
      threads: of this process; half of them stay free for everybody else.
    """

    def __init__(self, threads: int) -> None:
        self._places = threading.Semaphore(max(1, threads // 2))

    def enter(self) -> None:
        """Take a place, to be given back with ``leave``.

        Raises:
          falcon.HTTPServiceUnavailable: all are taken.
        """
        if not self._places.acquire(blocking=False):
            raise falcon.HTTPServiceUnavailable(
                description="too many wait for events: ask without wait, or set "
                "MAILPOLL_WEB_THREADS higher",
                retry_after=5,
            )

    def leave(self) -> None:
        self._places.release()


def _account_id(query: schemas.StreamQuery) -> int | None:
    return account_or_404(query.account).id if query.account else None


class EventList:
    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting

    @route(
        Scope.READ,
        query=schemas.EventQuery,
        resp=Response(
            HTTP_200=schemas.EventPage, HTTP_404=schemas.Problem, HTTP_503=schemas.Problem
        ),
        tags=[EVENTS],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List events behind the one that you have, or wait for the next"""
        query: schemas.EventQuery = req.context.query
        found, last = self._find(query, _account_id(query))
        items = [schemas.Event(**event.public()) for event in found]
        send(resp, schemas.EventPage(items=items, last=last))

    def _find(
        self, query: schemas.EventQuery, account_id: int | None
    ) -> tuple[list[events.Event], int]:
        """The events, and the number to go on from."""
        if query.newest and not query.wait:
            found = events.read(query.after, query.limit, query.kinds, account_id, newest=True)
            return found, found[0].number if found else query.after
        if not query.wait:
            return events.look(query.after, query.limit, 0, query.kinds, account_id)
        self._waiting.enter()
        try:
            return events.look(query.after, query.limit, query.wait, query.kinds, account_id)
        finally:
            self._waiting.leave()


class EventStream:
    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting

    @route(
        Scope.READ,
        query=schemas.StreamQuery,
        resp=Response("HTTP_200", HTTP_404=schemas.Problem, HTTP_503=schemas.Problem),
        tags=[EVENTS],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Follow events as they come (server-sent events)"""
        query: schemas.StreamQuery = req.context.query
        account_id = _account_id(query)
        after = _last_event_id(req, query.after)
        self._waiting.enter()
        resp.content_type = "text/event-stream"
        resp.set_header("X-Accel-Buffering", "no")
        found = events.follow(after, STREAM, query.kinds, account_id, PULSE)
        resp.stream = _Stream(self._waiting, found, req.context.still_valid)


def _last_event_id(req: falcon.Request, after: int) -> int:
    """A browser that comes again tells the last id that it got in this header."""
    told = req.get_header("Last-Event-ID")
    if told is None:
        return after
    if not told.isascii() or not told.isdigit() or len(told) > 18:
        raise problems.field_problem("Last-Event-ID", "is not the id of an event")
    return int(told)


class _Stream:
    """The body of a stream; gunicorn closes it when its reader is gone."""

    def __init__(
        self,
        waiting: Waiting,
        found: Iterator[events.Event | None],
        still_valid: Callable[[], bool],
    ) -> None:
        self._waiting: Waiting | None = waiting
        self._events = found
        self._still_valid = still_valid

    def __iter__(self) -> Iterator[bytes]:
        yield b": mailpoll\n\n"
        checked = time.monotonic()
        for event in self._events:
            if time.monotonic() - checked >= CHECK:
                if not self._still_valid():
                    return
                checked = time.monotonic()
            if event is None:
                yield b": nothing new\n\n"
            else:
                head = f"id: {event.number}\nevent: {event.type}\ndata: ".encode()
                yield head + event.json() + b"\n\n"

    def close(self) -> None:
        if self._waiting:
            self._waiting.leave()
            self._waiting = None


def install(app: "falcon.App[Any, Any]", threads: int) -> None:
    waiting = Waiting(threads)
    app.add_route("/admin/events", EventList(waiting))
    app.add_route("/admin/events/stream", EventStream(waiting))
