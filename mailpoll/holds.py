"""Legal holds: while one is on a message or an account, nothing of it is deleted by anybody.

Who sets one and who deletes take the lock of the account's row first, so that one of them sees what
the other has done. Should that fail, foreign keys of the holds keep the rows.
"""

from collections.abc import Sequence

from . import audit, counters, database
from .models import AccountState, EmailAccount, EmailHold, EmailRawMessage

LOCK = database.Statement("SELECT state FROM email_accounts WHERE id = ? FOR UPDATE")


class Held(Exception):
    """A legal hold forbids it."""


def lock(account_id: int) -> str | None:
    """Let nobody set a hold or begin a deletion before this transaction ends; the state."""
    row = LOCK.run(account_id).fetchone()
    return row[0] if row else None


def of_accounts(ids: Sequence[int]) -> dict[int, EmailHold]:
    """The holds on whole accounts, by the account's id."""
    table = EmailHold
    with database.connected():
        rows = table.select().where(table.account.in_(list(ids)), table.message.is_null())
        return {row.account_id: row for row in rows}


def of_message(message_id: int) -> EmailHold | None:
    """The hold on a message itself."""
    with database.connected():
        return EmailHold.get_or_none(EmailHold.message == message_id)  # type: ignore[no-any-return]


def listed(limit: int, before: int | None = None) -> list[EmailHold]:
    """Holds, newest first, with the public names of their accounts.

    Parameters:
      before: only those whose row has a lower id.
    """
    table = EmailHold
    rows = table.select(table, EmailAccount.uuid, EmailAccount.address).join(EmailAccount)
    if before is not None:
        rows = rows.where(table.id < before)
    with database.connected():
        return list(rows.order_by(table.id.desc()).limit(limit))


def check(account_id: int) -> None:
    """Inside the transaction that deletes an account.

    Raises:
      Held: there is a hold on it, or on a message of it.
    """
    table = EmailHold
    held = list(table.select().where(table.account == account_id).limit(2))
    if held:
        counters.add("hold_refusals", label="account")
    if any(row.message_id is None for row in held):
        raise Held("a legal hold is on the account: lift it first")
    if held:
        raise Held("a legal hold is on messages of the account: lift it first")


def hold(account: EmailAccount, reason: str, message: EmailRawMessage | None = None) -> EmailHold:
    """Set a hold on an account or on one of its messages; a second one changes the reason.

    Raises:
      LookupError: it is not there any more.
    """
    table = EmailHold
    with database.transaction():
        if lock(account.id) in (None, AccountState.DELETING):
            raise LookupError("account")
        stored = EmailRawMessage
        if message and not stored.select().where(stored.id == message.id).exists():
            raise LookupError("message")
        row = table.get_or_none(_which(account, message))
        row = row or table(account=account.id, message=message and message.id)
        row.reason, row.held_by, row.held_at = reason, audit.who(), database.now()
        row.save()
        audit.record(*_audited("hold", account, message))
    return row  # type: ignore[no-any-return]


def lift(account: EmailAccount, message: EmailRawMessage | None = None) -> bool:
    """End a hold, and let retention look at the account soon; false when there was none."""
    with database.transaction():
        lock(account.id)
        lifted = EmailHold.delete().where(_which(account, message)).execute()
        if lifted:
            EmailAccount.update(retained_at=None, retention_cursor=None).where(
                EmailAccount.id == account.id
            ).execute()
            audit.record(*_audited("unhold", account, message))
    return bool(lifted)


def _which(account: EmailAccount, message: EmailRawMessage | None) -> object:
    table = EmailHold
    target = table.message.is_null() if message is None else table.message == message.id
    return (table.account == account.id) & target


def _audited(
    verb: str, account: EmailAccount, message: EmailRawMessage | None
) -> tuple[str, str, str]:
    if message is None:
        return f"account.{verb}", "account", account.uuid
    return f"message.{verb}", "message", str(message.id)
