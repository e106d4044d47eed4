"""What every table has."""

import peewee
from peewee import fn

from .. import database


class Table(peewee.Model):
    class Meta:
        database = database.proxy
        legacy_table_names = False


def count(query: peewee.ModelSelect) -> int:
    """The number of rows of a query, without wrapping it in a subquery."""
    return int(query.select(fn.COUNT(peewee.SQL("1"))).scalar())
