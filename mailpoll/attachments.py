"""Looking for attachments among all that an account has."""

from .database import connected
from .models import EmailAccount, EmailAttachment, EmailRawMessage


def find(
    account: EmailAccount,
    limit: int,
    *,
    before: int | None = None,
    name: str | None = None,
    kind: str | None = None,
    min_size: int | None = None,
) -> list[EmailAttachment]:
    """Attachments with their messages, those that were stored last first.

    Parameters:
      before: only those whose row has a lower id.
      name: a part of the name, in any case (of ASCII letters, at least).
      kind: how the content type begins, such as ``image/``.
      min_size: decoded bytes.
    """
    table, message = EmailAttachment, EmailRawMessage
    rows = (
        table.select(
            table, message.id, message.subject, message.from_addresses, message.internal_date
        )
        .join(message)
        .where(table.account == account.id)
    )
    if before is not None:
        rows = rows.where(table.id < before)
    if name:
        rows = rows.where(table.name.contains(name))
    if kind:
        rows = rows.where(table.content_type.startswith(kind.lower()))
    if min_size is not None:
        rows = rows.where(table.size >= min_size)
    with connected():
        return list(rows.order_by(table.id.desc()).limit(limit))
