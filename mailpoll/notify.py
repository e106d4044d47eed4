"""Messages to operators, through whatever Apprise knows: mail, chat, SMS, a URL of one's own.

The addresses hold passwords and tokens: no word from here, or from Apprise, ever shows one.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import apprise

# It quotes addresses in what it logs.
logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)

WARNING, SUCCESS, INFO = (
    apprise.NotifyType.WARNING,
    apprise.NotifyType.SUCCESS,
    apprise.NotifyType.INFO,
)
ASSET = apprise.AppriseAsset(app_id="mailpoll", app_desc="mailpoll", async_mode=False)


@dataclass(frozen=True, slots=True)
class Receiver:
    """Where a message goes.

    Parameters:
      name: which of the configured ones it is, and the kind of service.
    """

    name: str
    service: Any

    def send(self, title: str, body: str, kind: Any) -> bool:
        """Whether the service took the message. Waits some seconds at most."""
        try:
            return bool(self.service.notify(title=title, body=body, notify_type=kind))
        except (
            Exception
        ):  # a service of others is wrong in its own ways, and its words may be secret
            return False


def valid(url: str) -> bool:
    """Whether Apprise knows what to do with an address."""
    return apprise.Apprise.instantiate(url, asset=ASSET) is not None


def receivers(urls: Sequence[str]) -> list[Receiver]:
    """The services behind valid addresses, in their order."""
    services: list[Any] = [apprise.Apprise.instantiate(url, asset=ASSET) for url in urls]
    return [
        Receiver(f"{position} ({service.service_name})", service)
        for position, service in enumerate(services, 1)
    ]
