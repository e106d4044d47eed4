"""The backing sets of the integration tests, and what holds at the end of each of them."""

from tests.integration.conftest import (
    address,
    embedded,
    pytest_runtest_makereport,
    pytest_runtest_setup,
    scripted,
    scripted_port,
    system,
)

__all__ = [
    "address",
    "embedded",
    "pytest_runtest_makereport",
    "pytest_runtest_setup",
    "scripted",
    "scripted_port",
    "system",
]
