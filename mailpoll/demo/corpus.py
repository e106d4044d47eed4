"""Realistic mail for the sample mailboxes, the same at every run.

Charsets, HTML with inline images, attachments with names in many scripts, nested messages,
bounces, invitations, lists and threads; all names are invented, on example domains.
"""

import random
import struct
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email import message_from_string, policy
from email.headerregistry import Address
from email.message import EmailMessage, MIMEPart
from email.utils import format_datetime

MAILBOXES = 20
FIRST_NAMES = (
    "anna", "bela", "chen", "dora", "emil", "fatima", "georg", "hana", "igor", "jana",
    "kofi", "lena", "mika", "noor", "olga", "pavel", "quinn", "rosa", "samir", "tilda",
)  # fmt: skip
START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)

#: Charset, and words in a language that is written with it.
TEXTS = (
    ("utf-8", "Die Lieferung kommt am Montag. Schöne Grüße aus Köln! 🚚"),
    ("iso-8859-1", "Le café est prêt, à bientôt. Señor Núñez vendrá mañana."),
    ("windows-1252", "The price is 120 €, “as agreed” – see you soon."),
    ("koi8-r", "Добрый день! Отправляю вам договор на подпись."),
    ("windows-1251", "Счёт оплачен, спасибо за быструю доставку."),
    ("iso-2022-jp", "来週の会議の資料をお送りします。よろしくお願いします。"),
    ("shift_jis", "お世話になっております。ご確認ください。"),
    ("gb18030", "您好，附件是本月的报告，请查收。"),
    ("big5", "您好，請確認訂單內容，謝謝。"),
    ("euc-kr", "안녕하세요. 회의 일정을 확인해 주세요."),
    ("iso-8859-2", "Příští týden pošleme novou nabídku. Děkujeme."),
    ("iso-8859-7", "Καλημέρα, σας στέλνω το τιμολόγιο."),
)
SUBJECTS = (
    "Order confirmation", "Angebot für März", "Протокол встречи", "会議の議事録", "月度报告",
    "회의 일정", "Nouvelle facture n° 42", "Re: Question about the delivery", "",
)  # fmt: skip
FILE_NAMES = ("report.pdf", "Übersicht März.csv", "見積書.xlsx", "фото.jpg", "notes 📎.txt")


def address_of(number: int) -> str:
    """The address of a sample mailbox, counted from 0."""
    return f"{FIRST_NAMES[number]}@example.org"


def mailbox(number: int) -> list[bytes]:
    """The messages of one sample mailbox, as bytes with CRLF line ends."""
    rng = random.Random(f"mailbox {number}")  # noqa: S311 - the same mail at every run
    kinds = [rng.choice(KINDS) for _ in range(rng.randrange(8, 18))]
    return [_finish(make(rng), rng, number, index) for index, make in enumerate([*KINDS, *kinds])]


def _finish(message: EmailMessage, rng: random.Random, number: int, index: int) -> bytes:
    """Give a message the fields that every mail has."""
    sender = rng.choice(FIRST_NAMES)
    message["From"] = Address(sender.title() + " Beispiel", sender, "example.com")
    message["To"] = address_of(number)
    if "Subject" not in message:
        message["Subject"] = rng.choice(SUBJECTS)
    message["Date"] = format_datetime(START + timedelta(hours=7 * index + number))
    message["Message-ID"] = f"<{index}.{number}@mail.example.com>"
    if index % 5 == 4:
        message["References"] = f"<{index - 2}.{number}@mail.example.com> <{index - 1}.{number}@x>"
        message["In-Reply-To"] = f"<{index - 1}.{number}@mail.example.com>"
    for position, part in enumerate(message.walk()):
        if part.get_content_maintype() == "multipart":
            part.set_boundary(f"=_part_{number}_{index}_{position}")
    return message.as_bytes(policy=policy.SMTP)


def _plain(rng: random.Random) -> EmailMessage:
    charset, text = rng.choice(TEXTS)
    message = EmailMessage()
    message.set_content("\n".join([text] * rng.randrange(1, 40)) + "\n", charset=charset)
    return message


def _alternative(rng: random.Random) -> EmailMessage:
    _, text = rng.choice(TEXTS)
    message = EmailMessage()
    message.set_content(f"{text}\n")
    message.add_alternative(f"<html><body><p><b>{text}</b></p></body></html>\n", subtype="html")
    return message


def _inline_image(rng: random.Random) -> EmailMessage:
    message = EmailMessage()
    message.set_content("The logo is in the HTML part.\n")
    message.add_alternative('<p>Our logo: <img src="cid:logo@example.com"></p>\n', subtype="html")
    html = message.get_payload(1)
    assert isinstance(html, MIMEPart)
    html.add_related(_png(rng), "image", "png", cid="<logo@example.com>", filename="logo.png")
    return message


def _attachment(rng: random.Random) -> EmailMessage:
    message = _plain(rng)
    for name in rng.sample(FILE_NAMES, k=rng.randrange(1, 3)):
        data = rng.randbytes(rng.randrange(2_000, 90_000))
        message.add_attachment(data, maintype="application", subtype="octet-stream", filename=name)
    return message


def _large_attachment(rng: random.Random) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = "Photos of the construction site"
    message.set_content("As promised.\n")
    data = rng.randbytes(1_200_000)
    message.add_attachment(data, maintype="application", subtype="zip", filename="photos.zip")
    return message


def _nested(rng: random.Random) -> EmailMessage:
    inner = _attachment(rng)
    inner["Subject"] = "The original message"
    inner["From"] = "origin@example.net"
    message = EmailMessage()
    message["Subject"] = "Fwd: The original message"
    message.set_content("See the forwarded message.\n")
    message.add_attachment(inner)
    return message


def _bounce(rng: random.Random) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = "Undelivered Mail Returned to Sender"
    message.set_content("Your message could not be delivered.\n")
    message.make_mixed()
    status = message_from_string(
        "Content-Type: message/delivery-status\n\nReporting-MTA: dns; mail.example.com\n\n"
        f"Final-Recipient: rfc822; nobody{rng.randrange(100)}@example.net\n"
        "Action: failed\nStatus: 5.1.1\n",
        policy=policy.default,
    )
    message.attach(status)
    return message


def _invitation(rng: random.Random) -> EmailMessage:
    day = rng.randrange(1, 28)
    message = EmailMessage()
    message["Subject"] = "Invitation: planning"
    message.set_content("You are invited.\n")
    calendar = (
        "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nMETHOD:REQUEST\r\nBEGIN:VEVENT\r\n"
        f"UID:{rng.randrange(10**9)}@example.com\r\nDTSTART:202604{day:02}T090000Z\r\n"
        "SUMMARY:Planning\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
    )
    message.add_attachment(calendar, subtype="calendar", filename="invite.ics")
    return message


def _list_mail(rng: random.Random) -> EmailMessage:
    message = _plain(rng)
    message["Subject"] = f"[announce] Release 1.{rng.randrange(20)} is out " + "and more " * 12
    message["List-Id"] = "Announcements <announce.lists.example.com>"
    message["List-Unsubscribe"] = "<https://lists.example.com/leave?id=1>"
    return message


KINDS: tuple[Callable[[random.Random], EmailMessage], ...] = (
    _plain,
    _alternative,
    _inline_image,
    _attachment,
    _large_attachment,
    _nested,
    _bounce,
    _invitation,
    _list_mail,
)


def _png(rng: random.Random) -> bytes:
    """A small square of one colour (PNG specification, section 5)."""
    size = 32
    row = b"\0" + bytes(rng.randrange(256) for _ in range(3)) * size

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    body = zlib.compress(row * size)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
