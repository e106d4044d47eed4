"""What holds for every message (hypothesis): any bytes, and any well-formed mail."""

from email.headerregistry import Address as Mailbox
from email.message import EmailMessage
from email.policy import SMTP

from hypothesis import given, settings
from hypothesis import strategies as st

from mailpoll.parsing import Address, fast, parse, standard
from mailpoll.parsing.classify import Part, split
from mailpoll.parsing.outline import outline

from .invariants import check

#: The same examples at every run; ``make fuzz`` looks for new ones.
bounded = settings(max_examples=100, deadline=None, derandomize=True)

#: Folding long fields, the library loses blanks between encoded words.
UNFOLDED = SMTP.clone(max_line_length=998)

#: What messages are made of, to be put together in any order.
PIECES = [
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b"\0", b":", b"--", b"--b", b"--b--", b"--bb",
    b"From: ", b"To: ", b"Subject: ", b"Date: ", b"Message-ID: ", b"References: ", b"From x\n",
    b"Content-Type: ", b"multipart/mixed; boundary=b", b'multipart/digest; boundary="bb"',
    b"text/plain; charset=", b"text/html", b"message/rfc822", b"image/png; name=", b"a/b",
    b"utf-8", b"utf-16", b"utf-7", b"iso-2022-jp", b"no-such", b"; ", b"; name*0*=utf-8''%C3",
    b"Content-Transfer-Encoding: ", b"base64", b"quoted-printable", b"8bit", b"x-uuencode",
    b"Content-Disposition: ", b"attachment; filename=", b"inline", b"Content-ID: <1@b.c>",
    b"=?utf-8?q?=C3=BC?=", b"=?utf-16?b?2AA=?=", b"=?", b"?=", b'"', b"\\", b"<", b">", b"(", b")",
    b"a@b.c", b"AAEC", b"=E9", b"=\r\n", b"\xc3\xbc", b"\xff", b"\xed\xa0\x80", b"<p>",
    b"cid:1@b.c",
]  # fmt: skip
piece = st.sampled_from(PIECES) | st.binary(max_size=8)
any_mail = st.lists(piece, max_size=60).map(b"".join)

letters = st.characters(exclude_categories=("C", "Z"), exclude_characters="\u034f\u00ad")
word = st.text(letters, min_size=1, max_size=12)
phrase = st.lists(word, min_size=1, max_size=5).map(" ".join)
token = st.from_regex(r"[a-z][a-z0-9]{0,9}", fullmatch=True)
mailbox = st.tuples(phrase, token, token.map(lambda name: f"{name}.example"))
file = st.tuples(phrase, st.binary(max_size=2_000))
texts = st.lists(st.text(letters | st.just(" "), max_size=100), max_size=20).map("\n".join)


@bounded
@given(st.binary(max_size=500) | any_mail)
def test_any_bytes_are_a_message_that_can_be_stored(raw: bytes) -> None:
    message = parse(raw)
    check(message)
    assert parse(raw) == message


@bounded
@given(any_mail)
def test_any_bytes_can_be_reduced_and_read_by_both_parsers(raw: bytes) -> None:
    reduced = outline(raw, max_leaf=16)
    standard.read(reduced)
    fast.read(reduced.message, reduced)


@st.composite
def well_formed(draw: st.DrawFn) -> tuple[EmailMessage, dict[str, object]]:
    subject, body = draw(phrase), draw(texts)
    people = draw(st.lists(mailbox, min_size=1, max_size=4))
    files = draw(st.lists(file, max_size=3))
    html = draw(st.booleans())
    mail = EmailMessage(policy=UNFOLDED)
    mail["Subject"] = subject
    mail["From"] = Mailbox(*people[0])
    mail["To"] = [Mailbox(*one) for one in people]
    body = body.rstrip("\n") + "\n"
    mail.set_content(body)
    if html:
        mail.add_alternative(f"<p>{body}", subtype="html")
    for name, data in files:
        mail.add_attachment(data, maintype="application", subtype="x-test", filename=name)
    return mail, {"subject": subject, "people": people, "body": body, "files": files, "html": html}


@bounded
@given(well_formed())
def test_a_well_formed_message_comes_out_as_it_went_in(made: tuple[EmailMessage, dict]) -> None:  # type: ignore[type-arg]
    mail, wanted = made
    message = parse(mail.as_bytes())
    people = [Address(name, f"{local}@{domain}") for name, local, domain in wanted["people"]]
    assert message.subject == wanted["subject"]
    assert (message.from_, message.to) == (people[:1], people)
    assert message.text.replace("\r\n", "\n") == wanted["body"]
    assert bool(message.html) == wanted["html"]
    found = [(one.name, b"".join(one.chunks())) for one in message.attachments]
    assert found == wanted["files"]
    assert message.defects == []


@bounded
@given(well_formed())
def test_both_parsers_read_the_same_structure(made: tuple[EmailMessage, dict]) -> None:  # type: ignore[type-arg]
    raw = made[0].as_bytes()
    second = standard.read(outline(raw))
    first = fast.read(raw)
    assert first is None or _leaves(first) == _leaves(second)


def _leaves(root: Part) -> list[list[tuple[str, str, str, bytes | None]]]:
    return [[_leaf(part) for part in parts] for parts in split(root)]


def _leaf(part: Part) -> tuple[str, str, str, bytes | None]:
    content = part.content and part.content.read()
    return part.content_type, part.name, part.disposition, content
