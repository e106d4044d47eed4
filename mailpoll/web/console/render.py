"""Templates to pages: what all of them share, how values are written, and the files they need."""

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import falcon
import jinja2
import orjson
from markupsafe import Markup, escape

from . import charts

HERE = Path(__file__).parent
ASSETS = "/assets/"
#: A year: the name changes with the content.
FOREVER = "public, max-age=31536000, immutable"
KINDS = {".css": "text/css; charset=utf-8", ".js": "text/javascript", ".svg": "image/svg+xml"}
CONTENT_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
#: What is said after something was done, by the word in the address; nothing else is ever shown.
NOTES = {
    "added": "The account is added. Its first poll is on its way.",
    "changed": "Saved.",
    "held": "It is held: nothing of it is deleted.",
    "lifted": "The hold is lifted.",
    "connected": "The account is connected again. Its next poll is due now.",
    "imported": "{n} accounts were added. Their first polls are on their way.",
    "polled": "{n} polls are on their way.",
    "reconciled": "The next poll compares the whole lists of the server with what is stored.",
    "paused": "{n} accounts are paused.",
    "resumed": "{n} accounts are polled again.",
    "deleting": "{n} accounts are being deleted.",
    "spared": "{n} accounts are being deleted. Others are gone already, or a legal hold "
    "is on them or on a message of theirs: lift it first.",
    "retried": "{n} messages are being processed again.",
    "more": "{n} messages are being processed again. There are more: retry once more.",
    "task": "The task runs again.",
    "webhook": "The webhook is saved.",
    "replayed": "It is sent again from there on.",
    "removed": "The webhook is removed.",
    "export_removed": "The export is removed.",
    "revoked": "The key is revoked. It opens nothing any more.",
}
#: System flags that are worth a word (RFC 9051, section 2.3.2).
FLAGS = {
    "\\flagged": "flagged",
    "\\answered": "answered",
    "\\draft": "draft",
    "\\deleted": "marked as deleted",
}
#: What stands where there is no value.
NOTHING = "\u2013"
#: Bytes of a page that one value of a list takes at most.
HEAVIEST = 3_000
UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True)
class Asset:
    kind: str
    data: bytes


@cache
def assets() -> dict[str, Asset]:
    """The static files by the name that they are served by, which has a hash of the content."""
    found = {}
    for path in sorted((HERE / "static").iterdir()):
        if path.suffix in KINDS:
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()[:12]
            found[f"{path.stem}-{digest}{path.suffix}"] = Asset(KINDS[path.suffix], data)
    return found


def _asset(name: str) -> str:
    """The address of a static file."""
    stem, _, suffix = name.partition(".")
    (hashed,) = (one for one in assets() if one.startswith(f"{stem}-") and one.endswith(suffix))
    return f"{ASSETS}{hashed}"


def number(value: float | None) -> str:
    """With thin spaces between thousands."""
    return NOTHING if value is None else f"{value:,.0f}".replace(",", "\u202f")


def size(value: float | None) -> str:
    """Bytes in the unit that people would choose."""
    if value is None:
        return NOTHING
    amount, unit = float(value), 0
    while amount >= 1_000 and unit < len(UNITS) - 1:
        amount, unit = amount / 1_000, unit + 1
    return (
        f"{amount:.0f} {UNITS[unit]}"
        if unit == 0 or amount >= 100
        else f"{amount:.1f} {UNITS[unit]}"
    )


def duration(seconds: float | None) -> str:
    """Seconds in the largest unit that fits."""
    if seconds is None:
        return NOTHING
    for limit, unit, name in ((90, 1, "s"), (5_400, 60, "min"), (129_600, 3_600, "h")):
        if abs(seconds) < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} days"


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def ago(text: str | None) -> str | Markup:
    """A time as seen from now, with the time itself when it is pointed at."""
    if not text:
        return NOTHING
    at = moment(text)
    seconds = (datetime.now(UTC) - at).total_seconds()
    if abs(seconds) < 5:
        words = "now"
    else:
        words = f"{duration(seconds)} ago" if seconds > 0 else f"in {duration(-seconds)}"
    return _time(at, words)


def at(text: str | None) -> str | Markup:
    """A time of the calendar."""
    return NOTHING if not text else _time(moment(text), f"{moment(text):%Y-%m-%d %H:%M}")


def clock() -> Markup:
    """The time of day, of a page that is made anew while it is looked at."""
    now = datetime.now(UTC)
    return _time(now, f"{now:%H:%M:%S} UTC")


def _time(at: datetime, words: str) -> Markup:
    title = f"{at:%Y-%m-%d %H:%M:%S} UTC"
    shown = Markup('<time datetime="{}" title="{}">{}</time>')
    return shown.format(at.isoformat(), title, words)


def beginning(text: str, room: int) -> str:
    """As much of a text as takes at most ``room`` bytes of a page, where < is four of them."""
    start = text[:room]
    weights = range(1, len(start) + 1)
    return start[: bisect_right(weights, room, key=lambda n: len(escape(start[:n]).encode()))]


def brief(text: str, room: int) -> str:
    """A text, or its beginning and a sign that it goes on."""
    found = beginning(text, room)
    return found if found == text else f"{found} …"


def pieces_within(found: list[dict[str, Any]], room: int) -> list[dict[str, Any]]:
    """The pieces of a text in which matches are marked, as ``brief``."""
    shown = []
    for piece in found:
        if room <= 0:
            break
        shown.append(piece | {"text": brief(piece["text"], room)})
        room -= len(escape(piece["text"][:room]).encode())
    return shown


def fitting(items: list[Any], room: int) -> list[Any]:
    """As many of the first items as take about ``room`` bytes of a page.

    A value is as heavy as its JSON in an address, which is where most letters are the heaviest, but
    not heavier than ``HEAVIEST``: pages show what is longer in brief.
    """
    found = []
    for item in items:
        values = item.values() if isinstance(item, dict) else [item]
        room -= sum(min(len(quote(orjson.dumps(one))), HEAVIEST) for one in values)
        if room < 0:
            break
        found.append(item)
    return found


def people(found: list[dict[str, str]], limit: int = 3) -> str:
    """Names, or addresses of those who have none."""
    names = [one["name"] or one["address"] for one in found[:limit]]
    return brief(", ".join(names) + (" …" if len(found) > limit else ""), 200)


def marks(shown: dict[str, Any]) -> str:
    """Flags, keywords and labels of a message or of its place, in words; none if not followed."""
    if shown["flags"] is None:
        return ""
    flags = {flag.lower(): flag for flag in shown["flags"]}
    found = [] if "\\seen" in flags else ["unread"]
    found += [words for flag, words in FLAGS.items() if flag in flags]
    found += [flag for flag in flags.values() if not flag.startswith("\\")]
    return brief(", ".join(found + (shown["labels"] or [])), 200)


def query(**values: Any) -> str:
    """The part of an address behind the path; values that are empty are left out."""
    given = {name: value for name, value in values.items() if value not in (None, "", False)}
    return f"?{urlencode(given)}" if given else ""


@cache
def _templates() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        auto_reload=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(number=number, size=size, duration=duration, ago=ago, at=at)
    found.filters.update(people=people, marks=marks, brief=brief, fitting=fitting)
    found.filters.update(pieces_within=pieces_within)
    found.globals.update(
        asset=_asset,
        query=query,
        clock=clock,
        sparkline=charts.sparkline,
        hours_chart=charts.hours,
    )
    return found


def bare(resp: falcon.Response, template: str, **values: Any) -> None:
    """Answer with a page of a template that knows of no caller."""
    resp.content_type = falcon.MEDIA_HTML
    resp.set_header("Content-Security-Policy", CONTENT_POLICY)
    resp.set_header("Referrer-Policy", "same-origin")
    resp.text = _templates().get_template(template).render(**values)


def page(req: falcon.Request, resp: falcon.Response, template: str, **values: Any) -> None:
    """Answer with a page of the console, for who is logged in."""
    scope = req.context.caller.scope
    shared = {
        "who": req.context.caller.name,
        "scope": str(scope),
        "can_operate": scope in ("operate", "admin"),
        "can_admin": scope == "admin",
        "path": req.path,
        "note": _note(req),
        "request_id": resp.get_header("X-Request-Id"),
    }
    bare(resp, template, **shared | values)


def _note(req: falcon.Request) -> str | None:
    """What was just done, as the address says it."""
    words = NOTES.get(req.get_param("done") or "")
    amount = req.get_param("n") or ""
    if not words:
        return None
    text = words.format(n=amount if amount.isdecimal() and len(amount) < 10 else "The")
    for plural, single in (("accounts are", "account is"), ("polls are", "poll is")):
        if amount == "1":
            text = text.replace(plural, single)
    return text.replace("1 messages are", "1 message is") if amount == "1" else text


def assets_sink(req: falcon.Request, resp: falcon.Response, **_: Any) -> None:
    """Serve a static file."""
    found = assets().get(req.path.removeprefix(ASSETS))
    if found is None or req.method not in ("GET", "HEAD"):
        raise falcon.HTTPNotFound
    resp.content_type, resp.data = found.kind, found.data
    resp.set_header("Cache-Control", FOREVER)
