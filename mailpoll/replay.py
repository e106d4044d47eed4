"""Messages that could not be processed, made ready to be tried again."""

from . import audit, database
from .models import UNFINISHED, AccountState, EmailAccount, EmailRawMessage, MessageStatus


def for_reason(reason: str, limit: int) -> list[int]:
    """Make messages that failed for one reason ready to be processed again; their ids.

    Parameters:
      limit: how many in this transaction.
    """
    table = EmailRawMessage
    rows = (
        table.select(table.id)
        .join(EmailAccount)
        .where(
            UNFINISHED,
            table.status == MessageStatus.FAILED,
            table.error == reason,
            EmailAccount.state != AccountState.DELETING,
        )
        .order_by(table.id)
        .limit(limit)
    )
    with database.transaction():
        found = dict(rows.select(table.id, table.account).tuples())
        for account_id in sorted(set(found.values())):
            EmailAccount.lock(account_id)  # see ``doomed``
        ids = list(found)
        changed = table.update(
            status=MessageStatus.STORED, attempts=0, error=None, next_attempt_at=database.now()
        ).where(table.id.in_(ids), table.status == MessageStatus.FAILED)
        if not database.is_sqlite():
            changed = changed.returning(table.id)
            ids = [row.id for row in changed.execute()]
        else:  # nobody else writes
            changed.execute()
        for message_id in ids:
            audit.record("message.retry", "message", str(message_id))
    return ids


def one(message: EmailRawMessage) -> bool:
    """Make a failed message ready to be processed again; false when it has not failed."""
    table = EmailRawMessage
    with database.transaction():
        EmailAccount.lock(message.account_id)  # see ``doomed``
        changed = (
            table.update(
                status=MessageStatus.STORED, attempts=0, error=None, next_attempt_at=database.now()
            )
            .where(table.id == message.id, table.status == MessageStatus.FAILED)
            .execute()
        )
        if changed:
            audit.record("message.retry", "message", str(message.id))
    return bool(changed)
