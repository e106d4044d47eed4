"""How long an account's mail is kept: as configured, as the account says, and by legal holds."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from . import database
from .models import EmailAccount, EmailHold
from .settings import settings


class Rule(StrEnum):
    """Why a message is deleted: it arrived long ago, or has left the server long ago."""

    AGE = "age"
    EXPUNGED = "expunged"


@dataclass(frozen=True, slots=True)
class Policy:
    """Days after which mail is deleted, 0 for never: since it arrived, and since it left."""

    days: int
    expunged_days: int

    def __bool__(self) -> bool:
        return bool(self.days or self.expunged_days)

    def cutoff(self, rule: Rule, moment: datetime) -> datetime | None:
        """What is older is deleted; ``None``: nothing is."""
        days = self.days if rule is Rule.AGE else self.expunged_days
        return moment - timedelta(days=days) if days else None


def of(account: EmailAccount) -> Policy:
    """An account's policy, whatever holds there are."""
    config = settings()
    days, expunged = account.retention_days, account.retention_expunged_days
    return Policy(
        config.retention_days if days is None else days,
        config.retention_expunged_days if expunged is None else expunged,
    )


def held(account_id: int) -> bool:
    """Whether a legal hold is on the whole account."""
    table = EmailHold
    with database.connected():
        return bool(
            table.select().where(table.account == account_id, table.message.is_null()).exists()
        )


def wanted_since(account: EmailAccount, moment: datetime) -> datetime | None:
    """What arrived before is not fetched: it is not wanted, or would be deleted at once."""
    since: datetime | None = account.import_since
    oldest = of(account).cutoff(Rule.AGE, moment)
    if oldest is None or held(account.id):
        return since
    return max(since, oldest) if since else oldest
