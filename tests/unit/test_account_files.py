"""Files of accounts to be added."""

from mailpoll.web.account_files import accounts_of


def test_cells_keep_line_ends_and_passwords_what_looks_like_one() -> None:
    text = 'address,folders,password\r\na@example.org,"INBOX\nSent",p\x1cq\u2028 \r\n'
    assert accounts_of(text) == [
        {"address": "a@example.org", "folders": ["INBOX", "Sent"], "password": "p\x1cq\u2028 "}
    ]
