"""HTML to the text a person would read in it, for messages that have no text of their own.

libxml2 (by lxml) reads the HTML as a stream of events: no tree is built, so that neither depth nor
size nor a tag with 100,000 attributes makes it slow, as they make parsers that build one.
"""

from __future__ import annotations

import re

from lxml import etree

MAX_HTML = 2 * 1024 * 1024  # characters of HTML that are looked at
_MAX_DEPTH = 1_000  # elements inside each other; libxml2 searches all that are open at each end tag
_FEED = 16 * 1024

_UNSEEN = {
    "head", "title", "style", "script", "template", "noscript", "svg", "math", "object", "iframe",
    "audio", "video", "canvas", "select", "textarea", "button",
}  # fmt: skip
_LINES = {
    "address", "article", "aside", "body", "center", "dd", "div", "dt", "fieldset", "figcaption",
    "footer", "form", "header", "html", "li", "main", "nav", "section", "tr",
}  # fmt: skip
_PARAGRAPHS = {
    "blockquote", "dl", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "ol", "p", "pre",
    "table", "ul",
}  # fmt: skip
_BREAKS = dict.fromkeys(_LINES, 1) | dict.fromkeys(_PARAGRAPHS, 2)
_HIDDEN = re.compile(r"(?:^|[;\s])(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)
# Blanks, and the invisible characters that newsletters fill their preview line with.
_BLANKS = re.compile("[\\s\u00a0]+")
_UNSEEN_CHARACTER = "[\u00ad\u034f\u200b-\u200d\u2060\ufeff]"
# The look-behind gives a run only one place to start from: linear on megabytes of them.
_INVISIBLE = re.compile(f"(?<!{_UNSEEN_CHARACTER}){_UNSEEN_CHARACTER}++(?=\\s|$)|\u00ad")


def readable(html: str) -> tuple[str, bool]:
    """Return the text of `html`, and whether all of it was read.

    Paragraphs stand apart, list items and table rows on lines of their own; pictures are called by
    their alternative text; links are not spelt out. What is hidden is left out.
    """
    text = _Text()
    parser = etree.HTMLParser(target=text, encoding="utf-8", recover=True, huge_tree=False)
    source = html[:MAX_HTML].encode()
    try:
        for start in range(0, len(source), _FEED):
            parser.feed(source[start : start + _FEED])
            if text.too_deep:
                break
        parser.close()
    except etree.LxmlError:
        pass  # nothing to read in it: libxml2 calls that an error
    return text.close(), len(html) <= MAX_HTML and not text.too_deep


class _Text:
    """Takes the parser's events and writes lines."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.breaks = 0  # line ends owed before the next visible character
        self.blank = False  # a blank owed
        self.depth = 0
        self.unseen = 0  # depth of the outermost element that is not shown
        self.verbatim = 0  # depth of the outermost <pre>
        self.too_deep = False

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            self.too_deep = True
        if self.unseen:
            return
        if tag in _UNSEEN or "hidden" in attributes or _HIDDEN.search(attributes.get("style", "")):
            self.unseen = self.depth
            return
        if tag == "br":
            self.breaks = min(self.breaks + 1, 2)
        elif tag == "img":
            self._write(attributes.get("alt", ""))
        elif tag in {"td", "th"}:
            self.blank = True
        elif tag in _BREAKS:
            self._break(tag)
            if tag == "li":
                self._write("- ")
            elif tag == "pre":
                self.verbatim = self.verbatim or self.depth

    def end(self, tag: str) -> None:
        if self.unseen == self.depth:
            self.unseen = 0
        elif not self.unseen:
            self._break(tag)
        if self.verbatim == self.depth:
            self.verbatim = 0
        self.depth -= 1

    def data(self, text: str) -> None:
        if not self.unseen and not self.too_deep:
            self._write(text)

    def comment(self, text: str) -> None:
        """Not shown."""

    def close(self) -> str:
        return "".join(self.pieces).strip()

    def _break(self, tag: str) -> None:
        self.breaks = max(self.breaks, _BREAKS.get(tag, 0))

    def _write(self, text: str) -> None:
        if self.verbatim:
            lines = text.replace("\r\n", "\n").replace("\r", "\n")
            if lines:
                self._settle()
                self.pieces.append(lines)
            return
        words = _BLANKS.sub(" ", _INVISIBLE.sub("", text))
        visible = words.strip()
        if words.startswith(" "):
            self.blank = True
        if visible:
            self._settle()
            self.pieces.append(visible)
            self.blank = words.endswith(" ")

    def _settle(self) -> None:
        """Pay what is owed before a visible character."""
        if self.pieces:
            self.pieces.append("\n" * self.breaks if self.breaks else " " * self.blank)
        self.breaks, self.blank = 0, False
