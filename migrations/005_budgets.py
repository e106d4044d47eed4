"""What was fetched from an account today, and until when a provider wants to be left alone."""

import peewee


def migrate(migrator, database, *, fake=False):
    time = "TEXT" if isinstance(database, peewee.SqliteDatabase) else "TIMESTAMPTZ"
    migrator.sql("ALTER TABLE email_accounts ADD COLUMN traffic_day VARCHAR(10)")
    migrator.sql("ALTER TABLE email_accounts ADD COLUMN traffic_bytes BIGINT NOT NULL DEFAULT 0")
    migrator.sql(f"ALTER TABLE email_accounts ADD COLUMN not_before {time}")
    migrator.sql(
        "CREATE TABLE email_hosts ("
        f"host VARCHAR(255) PRIMARY KEY, not_before {time} NOT NULL, reason TEXT NOT NULL)"
    )


def rollback(migrator, database, *, fake=False):
    migrator.sql("DROP TABLE email_hosts")
    for name in ("traffic_day", "traffic_bytes", "not_before"):
        migrator.sql(f"ALTER TABLE email_accounts DROP COLUMN {name}")
