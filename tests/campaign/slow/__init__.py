"""The faults that take time, by what is broken; in real time unless said otherwise."""

from tests.campaign.slow import (  # noqa: F401 - they register the faults
    chance,
    clocks,
    databases,
    mail_servers,
    processes,
    redis,
    stores,
)
