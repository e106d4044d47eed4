"""File names that are safe to show and to save under (S24 to S26)."""

import pytest

from mailpoll.parsing.names import MAX_BYTES, safe_name

from .build import parsed

NAMES = {
    "report.pdf": "report.pdf",
    "Übersicht März.csv": "Übersicht März.csv",
    "見積書.xlsx": "見積書.xlsx",
    "../../../etc/cron.d/x": "_.._.._etc_cron.d_x",
    "/etc/passwd": "_etc_passwd",
    "..\\x": "_x",
    "C:\\a.pdf": "C__a.pdf",
    "a\0b": "a_b",
    "a\r\nX-Evil: 1": "a__X-Evil_ 1",
    "invoice\u202efdp.exe": "invoice_fdp.exe",
    "a\u200bb\ufeff.txt": "a_b_.txt",
    "a\u2028b": "a_b",
    "CON": "_CON",
    "con.txt": "_con.txt",
    "LPT1.pdf": "_LPT1.pdf",
    ".htaccess": "htaccess",
    "a.pdf. . ": "a.pdf",
    'a"b<c>|?*.txt': "a_b_c____.txt",
    "\uff0fetc\uff0fpasswd": "_etc_passwd",
}


@pytest.mark.parametrize(("name", "wanted"), NAMES.items())
def test_what_is_dangerous_is_replaced(name: str, wanted: str) -> None:
    assert safe_name(name, "a/b") == wanted


@pytest.mark.parametrize("name", ["", " ", "...", "///", "\0", "\u202e"])
def test_an_empty_name_is_made_from_the_type(name: str) -> None:
    assert safe_name(name, "application/pdf") == "attachment.pdf"
    assert safe_name(name, "no/such") == "attachment.bin"


@pytest.mark.parametrize("letter", ["x", "ü", "書", "🚚"])
def test_a_long_name_is_cut_and_keeps_its_extension(letter: str) -> None:
    name = safe_name(letter * 5_000 + ".pdf", "a/b")
    assert len(name.encode()) <= MAX_BYTES
    assert name.startswith(letter)


def test_the_extension_of_a_long_name_is_kept() -> None:
    assert safe_name("x" * 300 + ".pdf", "a/b").endswith("x.pdf")
    assert len(safe_name("x" * 300 + "." + "y" * 300, "a/b")) == MAX_BYTES


@pytest.mark.parametrize("name", ["invoice\u202efdp.exe", "a\u200b.txt", "a\tb", "a\u2028b"])
def test_characters_that_are_not_seen_make_a_name_suspicious(name: str) -> None:
    message = parsed(f'Content-Disposition: attachment; filename="{name}"')
    assert message.attachments[0].name == name  # data, as the sender spelt it
    assert "suspicious-name" in message.defects


@pytest.mark.parametrize("name", ["report.pdf", "Übersicht März.csv", "見積書.xlsx", "../x"])
def test_other_names_are_not_suspicious(name: str) -> None:
    message = parsed(f'Content-Disposition: attachment; filename="{name}"')
    assert (message.attachments[0].name, message.defects) == (name, [])
