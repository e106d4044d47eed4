"""HTML of mail, made harmless: cleaned here, and locked up by the policy that it is served with.

Either would do alone. The cleaner leaves nothing that runs; the policy lets nothing run, be loaded
or be sent, whatever the cleaner has left (CWE-79).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

import nh3

#: No script, no form, no frame, no plug-in; no origin either, so no cookie and no storage.
POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src {images}; "
    "frame-ancestors 'self'; form-action 'none'; base-uri 'none'"
)
#: Characters of HTML that are shown; who writes more writes for machines.
LIMIT = 2_000_000
#: Pictures of the message itself, and the bytes that are put into the page for them.
PICTURES = frozenset(("image/gif", "image/jpeg", "image/png", "image/webp"))
PICTURE_BYTES, ALL_BYTES = 1_000_000, 4_000_000

TAGS = nh3.ALLOWED_TAGS | {"center", "font"}
EVERYWHERE = {"align", "bgcolor", "color", "dir", "height", "lang", "style", "title", "valign"}
EVERYWHERE |= {"width", "border", "cellpadding", "cellspacing", "face", "size"}
ATTRIBUTES = {"*": EVERYWHERE, "a": {"href"}, "img": {"src", "alt"}, "td": {"colspan", "rowspan"}}
ATTRIBUTES |= {"th": {"colspan", "rowspan"}, "ol": {"start"}}

FRAME = """<!doctype html>
<html><head><meta charset="utf-8"><meta name="color-scheme" content="light">
<meta name="viewport" content="width=device-width"><title>Message</title>
<style>body {{ font: 15px/1.5 system-ui, sans-serif; margin: 16px; overflow-wrap: anywhere;
background: #fff; color: #1b1f24 }} img {{ max-width: 100%; height: auto }}
table {{ max-width: 100% }}</style></head><body>{body}</body></html>
"""


@dataclass(slots=True)
class Cleaned:
    """What is left of a message's HTML, and how many pictures of other places were left out."""

    html: str
    remote: int = 0
    _pictures: Mapping[str, str] = field(default_factory=dict)


def clean(html: str, pictures: Mapping[str, str], *, remote: bool) -> Cleaned:
    """Make HTML harmless.

    Parameters:
      pictures: Content-ID to ``data:`` address of the message's own pictures.
      remote: let it load pictures from elsewhere, which tells their server that it is read.
    """
    found = Cleaned("")

    def attribute(tag: str, name: str, value: str) -> str | None:
        if tag != "img" or name != "src":
            return None if name == "href" and value.lower().startswith("data:") else value
        scheme, _, rest = value.partition(":")
        match scheme.strip().lower():
            case "cid":
                return pictures.get(unquote(rest).strip("<>"))
            case "data":
                return value if rest.partition(";")[0].lower() in PICTURES else None
            case "http" | "https":
                found.remote += 1
                return value if remote else None
        return None

    found.html = nh3.clean(
        html[:LIMIT],
        tags=TAGS,
        attributes=ATTRIBUTES,
        attribute_filter=attribute,
        url_schemes={"http", "https", "mailto", "tel", "cid", "data"},
        link_rel="noopener noreferrer",
    )
    return found


def policy(*, remote: bool) -> str:
    """The Content-Security-Policy of a cleaned message."""
    return POLICY.format(images="data: https: http:" if remote else "data:")
