"""Cursors: opaque to clients, stable while rows come and go."""

import base64
import binascii
from datetime import UTC, datetime

import orjson

from .problems import field_problem

#: The largest BIGINT: greater ids do not exist.
MAX_ID = 2**63 - 1


def encode(*values: int | datetime) -> str:
    """A cursor that stands after the row with these sort values."""
    return base64.urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")


def decode_id(cursor: str) -> int:
    """The id that a cursor of ``encode(id)`` stands after.

    Raises:
      falcon.HTTPError: 422, it is no cursor of ours.
    """
    match _decode(cursor):
        case [int(row_id)] if 0 <= row_id <= MAX_ID:
            return row_id
    raise field_problem("cursor", "is not a cursor of this list")


def decode_moment(cursor: str) -> tuple[datetime, int]:
    """The time and id that a cursor of ``encode(time, id)`` stands after.

    Raises:
      falcon.HTTPError: 422, it is no cursor of ours.
    """
    match _decode(cursor):
        case [str(text), int(row_id)] if 0 <= row_id <= MAX_ID:
            try:
                return datetime.fromisoformat(text).astimezone(UTC), row_id
            except (ValueError, OverflowError):
                pass
    raise field_problem("cursor", "is not a cursor of this list")


def _decode(cursor: str) -> object:
    try:
        return orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError):
        return None
