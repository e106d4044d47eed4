"""Whether the text of a message was made from its HTML."""


def migrate(migrator, database, *, fake=False):
    migrator.sql(
        "ALTER TABLE email_raw_messages ADD COLUMN text_derived BOOLEAN NOT NULL DEFAULT FALSE"
    )


def rollback(migrator, database, *, fake=False):
    migrator.sql("ALTER TABLE email_raw_messages DROP COLUMN text_derived")
