"""Rows behind the API's back: what a test arranges or checks that no request can."""

from typing import Any

from mailpoll import database, runtime
from mailpoll.models import (
    TABLES,
    Alarm,
    AuditEvent,
    EmailAccount,
    EmailDay,
    EmailHour,
    EmailJob,
    EmailRawMessage,
    Mark,
)


def account_row(uuid: str) -> EmailAccount:
    with database.connected():
        return EmailAccount.get(EmailAccount.uuid == uuid)


def change_accounts(**columns: Any) -> None:
    with database.transaction():
        EmailAccount.update(**columns).execute()


def change_messages(**columns: Any) -> None:
    with database.transaction():
        EmailRawMessage.update(**columns).execute()


def change_jobs(**columns: Any) -> None:
    with database.transaction():
        EmailJob.update(**columns).execute()


def counts() -> dict[str, int]:
    """Rows of every table that has any, but for those that are about no account at all."""
    tables = {*TABLES, EmailDay} - {Alarm, AuditEvent, EmailHour, Mark}
    with database.connected():
        found = {table._meta.table_name: table.select().count() for table in tables}
    return {name: count for name, count in found.items() if count}


def blobs(uuid: str) -> list[str]:
    """The keys of an account's blobs in every store."""
    storage = runtime.storage()
    stores = [store for store in (storage._primary, storage._fallback) if store is not None]
    return [found.key for store in stores for found in store.list_account(uuid)]
