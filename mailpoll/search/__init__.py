"""Full-text search: one behaviour on SQLite and PostgreSQL, because the words are made here.

``mailpoll.words`` makes words of text, ``document`` what the index has of a message, ``index``
stores it, ``query`` reads what people ask, ``finding`` finds and ranks, ``excerpts`` shows where.
"""

from .document import Content
from .excerpts import Excerpts, Piece
from .finding import Hit, Place, Results, find
from .index import (
    Prepared,
    Progress,
    add,
    catch_up,
    erase,
    forget_leftover,
    index_stored,
    leftovers,
    prepare,
)
from .query import Query, QueryError, parse

__all__ = [
    "Content",
    "Excerpts",
    "Hit",
    "Piece",
    "Place",
    "Prepared",
    "Progress",
    "Query",
    "QueryError",
    "Results",
    "add",
    "catch_up",
    "erase",
    "find",
    "forget_leftover",
    "index_stored",
    "leftovers",
    "parse",
    "prepare",
]
