"""The text of a message that has HTML alone."""

import time

import pytest

from mailpoll.parsing import parse
from mailpoll.parsing.readable import MAX_HTML, readable

from .build import mail

TEXTS = {
    "paragraphs": ("<p>one\n  two<p>three", "one two\n\nthree"),
    "line breaks": ("one<br>two<br/><br><br><br>three", "one\ntwo\n\nthree"),
    "divisions": ("<div>one</div><div><div>two</div></div>", "one\ntwo"),
    "heading": ("<h1>Title</h1>text", "Title\n\ntext"),
    "inline": ("<b>bo</b>ld <i> it </i>.", "bold it ."),
    "list": ("<ul><li>one<li>two</ul>after", "- one\n- two\n\nafter"),
    "table": ("<table><tr><td>a<td>b<tr><td>c<td>d</table>", "a b\nc d"),
    "entities": ("&lt;a&gt; &amp; &euro;&nbsp;&#8364; &zzz;", "<a> & € € &zzz;"),
    "preformatted": ("<pre>a\n  b</pre>c", "a\n  b\n\nc"),
    "picture": ('<img src=x alt="Our logo"> text', "Our logo text"),
    "link": ('<a href="https://b.c">here</a>', "here"),
    "script and style": ("<style>p{}</style><script>if (a<b) x()</script>t", "t"),
    "head": ("<html><head><title>T</title></head><body>t</body></html>", "t"),
    "comment": ("a<!-- no --><!--[if mso]>no<![endif]-->b", "ab"),
    "hidden": ('<div style="Display : none">no</div><p hidden>no</p>t', "t"),
    "hidden picture": ('<img style="display:none" alt="no">t', "t"),
    "preview filler": ("Sale&zwnj;&nbsp;&zwnj;&nbsp;&#847; &shy;today", "Sale today"),
    "emoji": ("👩\u200d🚀 &#128666;", "👩\u200d🚀 🚚"),
    "no tags": ("just text", "just text"),
    "not closed": ("<div><p>one<div>two", "one\n\ntwo"),
    "other charset in it": ('<meta charset="utf-16"><p>café', "café"),
    "XHTML": ('<?xml version="1.0" encoding="latin1"?><html><body>café</body></html>', "café"),
    "frames and forms": ("<iframe>no</iframe><select><option>no</select>t", "t"),
    "only blanks": (" \n ", ""),
    "nothing": ("", ""),
    "no element": ("<>", "<>"),
}
HOSTILE = {
    "depth": "<div>" * 400_000,
    "depth of inline": "<b>" * 600_000,
    "misnested": "<a><font>" * 20_000 + "x</p>" * 20_000,
    "ends without starts": "<b>" * 990 + "</i>x" * 400_000,
    "attributes": "<a " + " ".join(f"a{number}=1" for number in range(150_000)) + ">",
    "brackets": "<" * 1_500_000,
    "comments": "<!--" * 500_000,
    "quotes": '<a href="' * 200_000,
    "entities": "&amp;" * 400_000,
    "cells": "<td>x" * 400_000,
    "breaks": "<br>" * 500_000,
    "huge": "<p>x" * 2_000_000,
}


@pytest.mark.parametrize(("html", "text"), TEXTS.values(), ids=TEXTS)
def test_the_text_of_an_html(html: str, text: str) -> None:
    assert readable(html) == (text, True)


@pytest.mark.parametrize("html", HOSTILE.values(), ids=HOSTILE)
def test_no_html_takes_long(html: str) -> None:
    start = time.process_time()
    readable(html)
    assert time.process_time() - start < 10  # each takes under 1 s on a free core


def test_what_is_over_the_cap_is_not_read_and_that_is_told() -> None:
    message = parse(mail("Content-Type: text/html", body=b"x" * MAX_HTML + b"END"))
    assert "html-cut" in message.defects
    assert len(message.text) == MAX_HTML
    assert message.html.endswith("END")
    deep = parse(mail("Content-Type: text/html", body=b"<div>" * 2_000 + b"x"))
    assert "html-cut" in deep.defects
