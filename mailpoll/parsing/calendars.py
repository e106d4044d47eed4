"""What a calendar part says (RFC 5545): named properties of its events, read line by line.

Nothing is computed: no recurrence is expanded and no time zone evaluated, as whole calendar
libraries do when they read a file, for as long as a sender's rules want it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MAX_BYTES = 256 * 1024
MAX_EVENTS, MAX_ATTENDEES, MAX_VALUE = 100, 200, 10_000
_MOMENT = re.compile(r"(\d{4})(\d\d)(\d\d)(?:T(\d\d)(\d\d)(\d\d)(Z?))?")
_ESCAPE = re.compile(r"\\([\\;,nN])")


@dataclass(slots=True)
class Participant:
    """An organizer or attendee. ``status`` is PARTSTAT, such as ACCEPTED."""

    address: str
    name: str = ""
    status: str = ""


@dataclass(slots=True)
class Moment:
    """A date, or a time: in UTC when it ends with Z, else by the clocks of ``time_zone``."""

    value: str
    time_zone: str = ""


@dataclass(slots=True)
class Event:
    """A VEVENT. ``recurrence`` is its RRULE as written."""

    uid: str = ""
    summary: str = ""
    description: str = ""
    location: str = ""
    status: str = ""
    sequence: int = 0
    start: Moment | None = None
    end: Moment | None = None
    duration: str = ""
    recurrence: str = ""
    organizer: Participant | None = None
    attendees: list[Participant] = field(default_factory=list)


@dataclass(slots=True)
class Calendar:
    """A VCALENDAR. ``method`` says what is asked for: REQUEST, CANCEL, REPLY …

    ``complete`` is false when it has more than is read.
    """

    method: str = ""
    events: list[Event] = field(default_factory=list)
    complete: bool = True


def read_calendar(data: bytes) -> Calendar:
    """What of a calendar is understood; of anything else, nothing."""
    found = Calendar(complete=len(data) <= MAX_BYTES)
    inside: list[str] = []
    for line in _unfolded(data[:MAX_BYTES].decode("utf-8", "replace").replace("\0", "\ufffd")):
        name, parameters, value = _property(line)
        if name == "BEGIN":
            inside.append(value.upper()[:MAX_VALUE])
            if inside[-2:] == ["VCALENDAR", "VEVENT"]:
                if len(found.events) == MAX_EVENTS:
                    found.complete = False
                    break
                found.events.append(Event())
        elif name == "END":
            if inside and inside[-1] == value.upper():
                inside.pop()
        elif inside == ["VCALENDAR"] and name == "METHOD":
            found.method = value.upper()[:100]
        elif inside[-2:] == ["VCALENDAR", "VEVENT"] and found.events:
            _note(found, found.events[-1], name, parameters, value[:MAX_VALUE])
    return found


def _note(
    calendar: Calendar, event: Event, name: str, parameters: dict[str, str], value: str
) -> None:
    if name in _TEXTS:
        setattr(event, name.lower(), _unescaped(value))
    elif name in ("STATUS", "DURATION"):
        setattr(event, name.lower(), value[:100])
    elif name == "RRULE":
        event.recurrence = value
    elif name == "SEQUENCE" and value.isascii() and value.isdigit() and len(value) < 10:
        event.sequence = int(value)
    elif name in ("DTSTART", "DTEND"):
        moment = _moment(value, parameters)
        if name == "DTSTART":
            event.start = moment
        else:
            event.end = moment
    elif name == "ORGANIZER":
        event.organizer = _participant(value, parameters)
    elif name == "ATTENDEE":
        if len(event.attendees) == MAX_ATTENDEES:
            calendar.complete = False
        else:
            event.attendees.append(_participant(value, parameters))


_TEXTS = {"UID", "SUMMARY", "DESCRIPTION", "LOCATION"}


def _unfolded(text: str) -> list[str]:
    lines: list[list[str]] = []
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if line[:1] in (" ", "\t") and lines:
            lines[-1].append(line[1:])
        elif line:
            lines.append([line])
    return ["".join(parts) for parts in lines]


def _property(line: str) -> tuple[str, dict[str, str], str]:
    """Name, parameters and value of a content line (RFC 5545 3.1)."""
    pieces, start, quoted = [], 0, False
    for place, sign in enumerate(line):
        if sign == '"':
            quoted = not quoted
        elif sign in ";:" and not quoted:
            pieces.append(line[start:place])
            start = place + 1
            if sign == ":":
                break
    else:
        return "", {}, ""
    parameters = {}
    for piece in pieces[1:]:
        key, _, value = piece.partition("=")
        parameters[key.upper()] = value.strip('"')[:MAX_VALUE]
    return pieces[0].upper(), parameters, line[start:]


def _unescaped(value: str) -> str:
    return _ESCAPE.sub(lambda found: "\n" if found[1] in "nN" else found[1], value)


def _moment(value: str, parameters: dict[str, str]) -> Moment | None:
    found = _MOMENT.fullmatch(value.strip())
    if found is None:
        return None
    year, month, day, hour, minute, second, utc = found.groups()
    text = f"{year}-{month}-{day}"
    if hour is not None:
        text += f"T{hour}:{minute}:{second}{utc}"
    return Moment(text, "" if utc or hour is None else parameters.get("TZID", "")[:200])


def _participant(value: str, parameters: dict[str, str]) -> Participant:
    address = value.removeprefix("mailto:").removeprefix("MAILTO:")[:1_000]
    name, status = parameters.get("CN", "")[:1_000], parameters.get("PARTSTAT", "")[:100]
    return Participant(address, name, status)
