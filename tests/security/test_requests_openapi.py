"""The running API against its own document: whatever is sent, no 5xx, and only what it says."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.system import TOKEN, System
from tests.security.live import running

#: For each operation; few where the key alone is looked at.
EXAMPLES, WITHOUT_KEY = 12, 2
#: Not whether all that fits the schema is accepted: it cannot say that a server takes a login.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,negative_data_rejection"
)
#: 413, 414 and 429 are refusals too.
CONFIG = """
[checks]
negative_data_rejection.expected-statuses = [
  400, 401, 403, 404, 405, 409, 411, 413, 414, 415, 422, 429
]

# Who asks to wait for news would wait.
[[operations]]
include-path = "/admin/events"
parameters = { wait = 0 }
"""
#: It does not end by itself.
STREAM = "/admin/events/stream"


@pytest.mark.timeout(400)
def test_no_request_breaks_the_api(system: System, tmp_path: Path) -> None:
    """S51, S53: some hundred requests to all operations, valid and not, with a fixed seed."""
    send_requests(system, tmp_path, f"Bearer {TOKEN}", EXAMPLES)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("key", ["Bearer " + "x" * 40, ""], ids=["wrong", "without"])
def test_no_request_that_has_no_good_key_breaks_the_api(
    embedded: System, tmp_path: Path, key: str
) -> None:
    """S51, S53: all are refused before anything is looked at but the key."""
    send_requests(embedded, tmp_path, key, WITHOUT_KEY)


def send_requests(system: System, tmp_path: Path, key: str, examples: int) -> None:
    document = tmp_path / "openapi.json"
    document.write_text(system.api.simulate_get("/openapi.json").text)
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    system.add_account("someone@example.org", test=False)
    with running(
        tmp_path, MAILPOLL_IMAP_CONNECT_TIMEOUT="0.5", MAILPOLL_WEBHOOK_TIMEOUT="0.5"
    ) as web:
        header = ["--header", f"Authorization: {key}"] if key else []
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", str(document), "--url", web.url),
                *("--checks", CHECKS),
                *("--max-examples", str(examples), "--seed", "5", "--request-timeout", "30"),
                *("--mode", "all", "--no-color", "--phases", "examples,coverage,fuzzing"),
                *("--exclude-path", STREAM),
                *header,
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert ended.returncode == 0, ended.stdout[:9_000] + ended.stderr[-1_000:]
        log = web.log.read_text()
    assert "Traceback" not in log
