"""One account's poll: from the server's folders to rows, blobs and a proof that none is missing.

``account`` tells the story, ``download`` gets bodies from the server, ``ledger`` writes down what
became of each UID, ``proof`` adds it up.
"""

from .account import BROKEN, AccountSync, Outcome
from .ledger import LEASE

__all__ = ["BROKEN", "LEASE", "AccountSync", "Outcome"]
