"""Which part is the text, which the HTML, which an attachment, and in what order."""

import hashlib

import pytest

from mailpoll.parsing import ParsedMessage, parse

from .build import mail, multipart, parsed, part

PGP = "-----BEGIN PGP SIGNATURE-----\r\n\r\nabc\r\n-----END PGP SIGNATURE-----\r\n"
ATTACHED = "Content-Disposition: attachment"


def names(message: ParsedMessage) -> list[str]:
    return [one.name for one in message.attachments]


def contents(message: ParsedMessage) -> list[bytes]:
    return [b"".join(one.chunks()) for one in message.attachments]


def test_a_plain_message() -> None:
    message = parsed("From: a@b.c", body="Hello\r\n")
    assert (message.text, message.html, message.attachments) == ("Hello\r\n", "", [])
    assert message.defects == []


def test_an_alternative_has_both_a_text_and_an_html() -> None:
    raw = multipart("alternative", part("text/plain", "t"), part("text/html", "<p>h"))
    message = parse(raw)
    assert (message.text, message.html, message.text_derived) == ("t", "<p>h", False)


def test_an_html_alone_gives_a_text_too() -> None:
    message = parsed("Content-Type: text/html", body="<p>one<p>two")
    assert (message.text, message.text_derived) == ("one\n\ntwo", True)


def test_a_blank_text_beside_an_html_counts_as_none() -> None:
    message = parse(
        multipart("alternative", part("text/plain", " \r\n"), part("text/html", "<p>h"))
    )
    assert (message.text, message.text_derived) == ("h", True)


def test_an_html_that_shows_nothing_gives_no_text() -> None:
    message = parsed("Content-Type: text/html", body="<img src=x>")
    assert (message.text, message.text_derived) == ("", False)


def test_several_texts_are_joined_in_order() -> None:
    raw = multipart("mixed", part("text/plain", "one"), part("text/plain", "two"))
    assert parse(raw).text == "one\ntwo"


def test_attachments_keep_the_order_of_the_message_through_all_levels() -> None:
    inner = multipart(
        "mixed",
        part("image/png", "2", "Content-Disposition: inline"),
        part("a/b", "3"),
        boundary="i",
    )
    raw = multipart("mixed", part("a/b", "1"), inner, part("text/plain", "t"), part("a/b", "4"))
    assert contents(parse(raw)) == [b"1", b"2", b"3", b"4"]


def test_a_text_that_is_attached_is_a_file() -> None:
    raw = multipart("mixed", part("text/plain", "t"), part("text/plain", "f", ATTACHED))
    message = parse(raw)
    assert (message.text, contents(message)) == ("t", [b"f"])


def test_a_named_text_is_a_file_unless_it_is_inline_or_the_body() -> None:
    raw = multipart("mixed", part("text/plain", "t"), part("text/plain; name=a.txt", "f"))
    assert (parse(raw).text, names(parse(raw))) == ("t", ["a.txt"])
    inline = part("text/plain; name=a.txt", "f", "Content-Disposition: inline")
    assert parse(multipart("mixed", part("text/plain", "t"), inline)).text == "t\nf"
    assert parsed("Content-Type: text/plain; name=a.txt", body="t").text == "t"
    alternative = multipart("alternative", part("text/plain; name=a.txt", "t"))
    assert parse(alternative).text == "t"


def test_a_disposition_nobody_knows_shows_the_text() -> None:
    raw = multipart("mixed", part("text/plain", "t", "Content-Disposition: strange"))
    assert parse(raw).text == "t"


def test_a_picture_that_the_html_shows_is_inline() -> None:
    raw = multipart(
        "related",
        part("text/html", '<img src="cid:logo%40b.c"><img src=CID:other@b.c>'),
        part("image/png", "1", "Content-ID: <logo@b.c>"),
        part("image/png", "2", "Content-ID: <other@b.c>", ATTACHED),
        part("image/png", "3", "Content-ID: <unused@b.c>"),
        part("image/png", "4", "Content-ID: <marked@b.c>", "Content-Disposition: inline"),
        part("image/png", "5", "Content-Disposition: inline"),
    )
    found = {one.content_id: one.inline for one in parse(raw).attachments}
    wanted = {"logo@b.c": True, "other@b.c": True, "unused@b.c": False, "marked@b.c": True}
    assert found == {**wanted, "": False}


def test_a_nested_message_is_one_exact_attachment() -> None:
    inner = mail("Subject: inner", "From: x@y.z", body=b"caf\xe9 =\r\n\r\n\tend ")
    raw = multipart("mixed", part("text/plain", "t"), part("message/rfc822", inner))
    message = parse(raw)
    assert contents(message) == [inner]
    (nested,) = message.attachments
    assert (nested.name, nested.safe_name) == ("", "inner.eml")
    assert nested.sha256 == hashlib.sha256(inner).hexdigest()


def test_a_nested_message_with_parts_gives_none_of_them_away() -> None:
    inner = multipart("mixed", part("text/plain", "inner text"), part("a/b", "file"), boundary="i")
    raw = multipart("mixed", part("text/plain", "t"), part("message/rfc822", inner))
    message = parse(raw)
    assert (message.text, len(message.attachments)) == ("t", 1)
    nested = parse(contents(message)[0])
    assert (nested.text, contents(nested)) == ("inner text", [b"file"])


def test_a_nested_message_without_a_subject_has_a_name_to_be_saved_under() -> None:
    (nested,) = parse(multipart("mixed", part("message/rfc822", "From: a@b.c\r\n\r\n"))).attachments
    assert nested.safe_name == "message.eml"


def test_the_parts_of_a_digest_are_messages() -> None:
    inner = mail("Subject: one", body="1")
    raw = multipart("digest", b"\r\n" + inner, part("text/plain", "preface"))
    message = parse(raw)
    assert message.text == "preface"
    assert [one.content_type for one in message.attachments] == ["message/rfc822"]


def test_a_report_keeps_its_parts() -> None:
    status = "Reporting-MTA: dns; b.c\r\n\r\nFinal-Recipient: rfc822; x@y.z\r\nAction: failed\r\n"
    raw = multipart(
        "report",
        part("text/plain", "failed"),
        part("message/delivery-status", status),
        part("text/rfc822-headers", "Subject: s\r\n"),
    )
    message = parse(raw)
    assert message.text == "failed"
    types = [one.content_type for one in message.attachments]
    assert types == ["message/delivery-status", "text/rfc822-headers"]
    assert contents(message)[0] == status.encode()


def test_a_signed_message_keeps_text_and_signature() -> None:
    pgp = multipart("signed", part("text/plain", "t"), part("application/pgp-signature", PGP))
    assert (parse(pgp).text, contents(parse(pgp))) == ("t", [PGP.encode()])
    smime = part("application/pkcs7-signature; name=smime.p7s", "AAEC", ATTACHED)
    assert names(parse(multipart("signed", part("text/plain", "t"), smime))) == ["smime.p7s"]


def test_an_encrypted_message_is_kept_as_its_parts() -> None:
    raw = multipart(
        "encrypted",
        part("application/pgp-encrypted", "Version: 1"),
        part("application/octet-stream"),
    )
    assert len(parse(raw).attachments) == 2
    smime = parsed("Content-Type: application/pkcs7-mime; name=smime.p7m", body="MIAG")
    assert (smime.text, names(smime)) == ("", ["smime.p7m"])


def test_a_winmail_file_is_kept_as_it_is() -> None:
    tnef = bytes.fromhex("789f3e22") + bytes(range(256))
    raw = multipart(
        "mixed", part("text/plain", "t"), part("application/ms-tnef; name=winmail.dat", tnef)
    )
    assert (names(parse(raw)), contents(parse(raw))) == (["winmail.dat"], [tnef])


def test_an_invitation_is_a_file() -> None:
    raw = multipart(
        "alternative",
        part("text/plain", "t"),
        part("text/calendar; method=REQUEST", "BEGIN:VCALENDAR"),
    )
    assert [one.content_type for one in parse(raw).attachments] == ["text/calendar"]


def test_uuencoded_files_stay_in_the_text() -> None:
    body = "begin 644 a.txt\r\n#0V%T\r\n`\r\nend\r\n"
    assert parsed("Subject: x", body=body).text == body


def test_preamble_and_epilogue_are_nobodys_text() -> None:
    raw = multipart("mixed", part("text/plain", "t")).replace(
        b"\r\n\r\n--", b"\r\n\r\npreamble\r\n--", 1
    )
    assert parse(raw + b"epilogue").text == "t"


def test_a_multipart_without_its_boundary_shows_what_there_is() -> None:
    body = "--other\r\n\r\nHello\r\n--other--\r\n"
    assert parsed('Content-Type: multipart/mixed; boundary="b"', body=body).text == body
    assert parsed("Content-Type: multipart/mixed", body=body).text == body


def test_a_multipart_without_its_end_is_read_to_the_end() -> None:
    raw = multipart("mixed", part("text/plain", "t"), part("a/b", "file")).removesuffix(
        b"--=-=--\r\n"
    )
    assert (parse(raw).text, contents(parse(raw))) == ("t", [b"file\r\n"])


def test_a_nested_multipart_without_its_end_ends_with_the_outer_one() -> None:
    inner = multipart("alternative", part("text/plain", "t"), boundary="i").removesuffix(
        b"--i--\r\n"
    )
    raw = multipart("mixed", inner, part("a/b", "file"), boundary="o")
    assert (parse(raw).text.strip(), contents(parse(raw))) == ("t", [b"file"])


@pytest.mark.parametrize("inner", ["=-=", "=-=1", "=-"])
def test_boundaries_that_are_alike_are_told_apart(inner: str) -> None:
    # Outlook Express for Macintosh used one boundary for both levels.
    nested = multipart(
        "alternative", part("text/plain", "t"), part("text/html", "<p>h"), boundary=inner
    )
    message = parse(multipart("mixed", nested, part("a/b; name=f", "file", ATTACHED)))
    assert (message.text, message.html, names(message)) == ("t", "<p>h", ["f"])


def test_junk_after_the_boundary_parameter_is_skipped() -> None:
    raw = multipart("mixed", part("text/plain", "t"), part("a/b", "f"))
    raw = raw.replace(b'boundary="=-="', b'boundary="=-=" Message-Id: <1@b.c>')
    assert (parse(raw).text, contents(parse(raw))) == ("t", [b"f"])


@pytest.mark.parametrize("declared", ["iso-8859-1", "no-such", ""])
def test_eight_bit_text_survives_the_second_parser(declared: str) -> None:
    message = parsed(
        "Subject: s",
        "a line that makes the first parser step aside",
        f"Content-Type: text/plain; charset={declared}",
        "Content-Transfer-Encoding: 8bit",
        body=b"caf\xe9",
    )
    assert (message.parser, message.text) == ("stdlib", "café")


def test_a_part_without_an_empty_line_loses_no_text() -> None:
    raw = multipart("mixed", b"Content-Type: text/plain\r\nbar\r\n", part("text/html", "<p>h"))
    assert (parse(raw).text.strip(), parse(raw).html) == ("bar", "<p>h")


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
@pytest.mark.parametrize("end", [b"dolor=", b"=C3=BC=", b"dolor=20=", b"one\r\n="])
def test_a_soft_line_break_at_the_end_is_no_line_end(end: bytes, line_end: bytes) -> None:
    file = part("a/b", b"one\r\n" + end + b"\r\n", "Content-Transfer-Encoding: quoted-printable")
    raw = multipart("mixed", file, part("text/html", b"x", ATTACHED)).replace(b"\r\n", line_end)
    wanted = {b"dolor=": b"dolor", b"=C3=BC=": "ü".encode(), b"dolor=20=": b"dolor "}
    last = wanted.get(end, b"one" + line_end)
    assert contents(parse(raw))[0] == b"one" + line_end + last


def test_the_content_type_of_a_broken_field_is_text() -> None:
    assert parsed("Content-Type: nonsense", body="t").text == "t"
    assert parsed("Content-Type:", body="t").text == "t"


def test_of_two_content_types_the_first_counts() -> None:
    message = parsed("Content-Type: text/html", "Content-Type: text/plain", body="<p>h")
    assert message.html == "<p>h"


def test_identifiers_lose_their_brackets() -> None:
    message = parsed(
        "Message-ID: <1@b.c>",
        "In-Reply-To: Your message <2@b.c> of today",
        "References: <3@b.c>\r\n <4@b.c> (x)",
    )
    assert (message.message_id, message.in_reply_to) == ("1@b.c", "2@b.c")
    assert message.references == ["3@b.c", "4@b.c"]
    assert parsed("Message-ID: 1@b.c").message_id == "1@b.c"
