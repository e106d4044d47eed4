"""The one place where rows of messages are deleted, whoever wants them gone.

A table with rows of a message is added here, and then neither retention nor the deletion of an
account can forget it.
"""

from collections.abc import Sequence
from typing import Any

from . import database
from .models import (
    EmailAttachment,
    EmailFlag,
    EmailLocation,
    EmailRawMessage,
    EmailSearch,
    WebhookDelivery,
)


def remove_messages(ids: Sequence[int]) -> dict[str, int]:
    """Delete messages with all rows that hang on them, in the caller's transaction.

    Returns:
      how many rows of each table.
    """
    ids = database.padded(ids)
    places = EmailLocation.select(EmailLocation.id).where(EmailLocation.message.in_(ids))
    doomed: dict[Any, Any] = {
        EmailAttachment: EmailAttachment.message.in_(ids),
        EmailFlag: EmailFlag.location.in_(places),
        EmailLocation: EmailLocation.message.in_(ids),
        EmailSearch: EmailSearch.message.in_(ids),
        WebhookDelivery: WebhookDelivery.message_id.in_(ids),
        EmailRawMessage: EmailRawMessage.id.in_(ids),
    }
    return {
        table._meta.table_name: int(table.delete().where(rows).execute())
        for table, rows in doomed.items()
    }
