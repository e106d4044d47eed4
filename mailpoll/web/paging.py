"""Cursors: opaque to clients, stable while rows come and go."""

import base64
import binascii
from datetime import UTC, datetime

import orjson

from .problems import field_problem

#: The largest BIGINT: greater ids do not exist.
MAX_ID = 2**63 - 1


def encode(*values: str | int | datetime) -> str:
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


def decode_value(cursor: str, kind: type) -> tuple[str | int | datetime, int]:
    """The value, of a type, and the id that a cursor of ``encode(value, id)`` stands after.

    Raises:
      falcon.HTTPError: 422, it is no cursor of ours.
    """
    if kind is datetime:
        return decode_moment(cursor)
    match _decode(cursor):
        case [str() | int() as value, int(row_id)] if 0 <= row_id <= MAX_ID:
            fits = abs(value) <= MAX_ID if isinstance(value, int) else "\0" not in value
            if type(value) is kind and fits:
                return value, row_id
    raise field_problem("cursor", "is not a cursor of this list")


def decode_numbers(cursor: str, count: int) -> list[int]:
    """The numbers that a cursor was made of.

    Raises:
      falcon.HTTPError: 422, it is no cursor of ours.
    """
    match _decode(cursor):
        case [*values] if len(values) == count:
            numbers = [one for one in values if type(one) is int and -1 <= one <= MAX_ID]
            if len(numbers) == count:
                return numbers
    raise field_problem("cursor", "is not a cursor of this list")


def _decode(cursor: str) -> object:
    try:
        return orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError):
        return None
