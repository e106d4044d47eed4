"""Files of accounts: CSV whose first line names the columns, as spreadsheets write it."""

import csv
import io
from typing import Any

#: What columns may be called: fields of a new account.
COLUMNS = (
    "address",
    "password",
    "host",
    "port",
    "security",
    "username",
    "auth",
    "folders",
    "refresh_token",
    "oauth_provider",
    "poll_interval",
    "poll_interval_max",
    "import_since",
    "push",
    "sync_flags",
    "retention_days",
    "retention_expunged_days",
    "test",
)
NUMBERS = frozenset(
    ("port", "poll_interval", "poll_interval_max", "retention_days", "retention_expunged_days")
)
WORDS = {"yes": True, "true": True, "no": False, "false": False}


def accounts_of(text: str) -> list[dict[str, Any]]:
    """The accounts of a file, each with the fields that the API takes, checked or not.

    Raises:
      ValueError: it is no such file, or has no account; says why.
    """
    text = text.removeprefix("\ufeff").replace("\0", "").lstrip()
    if not text:
        raise ValueError("The file is empty.")
    first = text.partition("\n")[0]
    semicolons = first.count(";") > first.count(",")
    # Not cut into lines before: a cell may hold line ends, and a password what looks like one.
    lines = io.StringIO(text, newline="")
    reader = csv.DictReader(lines, delimiter=";" if semicolons else ",", restval="")
    names = [(name or "").strip().lower() for name in reader.fieldnames or ()]
    unknown = [name for name in names if name not in COLUMNS]
    if "address" not in names:
        raise ValueError("The first line should name the columns, one of them address.")
    if unknown:
        raise ValueError("Some columns in the first line have names that mean nothing here.")
    reader.fieldnames = names
    try:
        found = [_row(row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"The file is no CSV: {error}.") from None
    if not found:
        raise ValueError("The file has no account below the names of its columns.")
    return found


def _row(row: dict[Any, Any]) -> dict[str, Any]:
    if None in row:
        return {"address": row["address"], "columns": "more than the first line has"}
    password = row.pop("password", "")
    fields = account_fields({name: value.strip() for name, value in row.items()}, password)
    for name in ("push", "sync_flags", "test"):
        if name in fields:
            text = str(fields[name]).lower()
            fields[name] = WORDS.get(text, text)
    return fields


def account_fields(filled: dict[str, Any], password: str) -> dict[str, Any]:
    """The fields of a form, or of a line of a file, as the API takes them.

    What should be a number and is none stays as it is, for the API to say so.
    """
    found = {name: value for name, value in filled.items() if value not in ("", None)}
    for name in NUMBERS & found.keys():
        text = str(found[name])
        found[name] = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text
    if isinstance(found.get("folders"), str):
        folders = [one.strip() for one in found["folders"].replace(";", "\n").splitlines()]
        found["folders"] = [one for one in folders if one]
    return found | ({"password": password} if password else {})
