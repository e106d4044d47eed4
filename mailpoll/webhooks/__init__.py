"""Webhooks: other programs are told of events, each in order, until it has taken them.

``endpoints`` has what an operator does, ``delivery`` who is told of what and when, ``request`` what
one POST says.
"""

from .delivery import behind, deliver, redeliver
from .endpoints import (
    EndpointError,
    change,
    create,
    delete,
    deliveries,
    find,
    forget,
    listed,
    received,
    replay,
    rotate,
)
from .request import EXCERPT, TEST, Delivery, test

__all__ = [
    "EXCERPT",
    "TEST",
    "Delivery",
    "EndpointError",
    "behind",
    "change",
    "create",
    "delete",
    "deliver",
    "deliveries",
    "find",
    "forget",
    "listed",
    "received",
    "redeliver",
    "replay",
    "rotate",
    "test",
]
