"""What mailpoll is made of: known to the byte, and looked up among what is known to be broken."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted(ROOT.glob("requirements*.lock"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_its_hashes(lock: Path) -> None:
    """S62: what is installed is what was looked at."""
    entries = re.split(r"\n(?=\w)", lock.read_text())
    assert len(entries) > 20
    for entry in entries:
        assert re.match(r"[\w.-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


def audit(tmp_path: Path, words: str, status: int) -> subprocess.CompletedProcess[str]:
    """The audit with a program in place of pip-audit that says this."""
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{words}\nEND\nexit {status}\n")
    program.chmod(0o755)
    return subprocess.run(
        [str(ROOT / "tests" / "audit")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PIP_AUDIT": str(program)},
    )


@pytest.mark.parametrize(
    ("words", "status", "ends", "says"),
    [
        ("No known vulnerabilities found", 0, 0, "no known vulnerability"),
        ("Found 1 known vulnerability in 1 package\nidna 3.6 PYSEC-2024-60", 1, 1, "VULNERABLE"),
        (
            "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed",
            1,
            0,
            "NOT CHECKED",
        ),
        ("ERROR: requirement is not pinned", 1, 1, "FAILED"),
    ],
)
def test_the_audit_tells_an_advisory_from_an_outage(
    tmp_path: Path, words: str, status: int, ends: int, says: str
) -> None:
    """S62: an outage of the advisory service is told, and fails no build; an advisory does."""
    ended = audit(tmp_path, words, status)
    assert ended.returncode == ends, ended.stdout
    assert ended.stdout.count(says) == 2
