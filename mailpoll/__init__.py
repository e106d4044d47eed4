"""Bring the mail of many IMAP mailboxes into a database and an object store of your own."""

__version__ = "0.1.0"
