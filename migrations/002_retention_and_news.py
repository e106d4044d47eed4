"""How far retention came in an account, and since when a folder's mail is new."""

import peewee


def migrate(migrator, database, *, fake=False):
    sqlite = isinstance(database, peewee.SqliteDatabase)
    json, time = ("TEXT", "TEXT") if sqlite else ("JSONB", "TIMESTAMPTZ")
    migrator.sql(f"ALTER TABLE email_accounts ADD COLUMN retention_cursor {json}")
    migrator.sql(f"ALTER TABLE email_folders ADD COLUMN news_since {time}")


def rollback(migrator, database, *, fake=False):
    migrator.sql("ALTER TABLE email_accounts DROP COLUMN retention_cursor")
    migrator.sql("ALTER TABLE email_folders DROP COLUMN news_since")
