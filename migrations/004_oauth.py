"""OAuth 2: the refresh token of an account, and the access token that it bought last."""

import peewee

COLUMNS = {
    "oauth_provider": "VARCHAR(16)",
    "refresh_token": "TEXT",
    "access_token": "TEXT",
    "access_token_expires_at": "{time}",
    "token_claimed_until": "{time}",
    "token_error": "TEXT",
}


def migrate(migrator, database, *, fake=False):
    time = "TEXT" if isinstance(database, peewee.SqliteDatabase) else "TIMESTAMPTZ"
    for name, kind in COLUMNS.items():
        migrator.sql(f"ALTER TABLE email_accounts ADD COLUMN {name} {kind.format(time=time)}")


def rollback(migrator, database, *, fake=False):
    for name in COLUMNS:
        migrator.sql(f"ALTER TABLE email_accounts DROP COLUMN {name}")
