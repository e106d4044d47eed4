"""What mailpoll is made of: known to the byte, and looked up among what is known to be broken."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted(ROOT.glob("requirements*.lock"))
#: One that names a single package: what installs the others.
INSTALLER = "requirements-uv.lock"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_its_hashes(lock: Path) -> None:
    """S62: what is installed is what was looked at."""
    entries = re.split(r"\n(?=\w)", lock.read_text())
    assert len(entries) == 1 if lock.name == INSTALLER else len(entries) > 20
    for entry in entries:
        assert re.match(r"[\w.-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


#: What pip-audit says, and the status it ends with.
Said = tuple[str, int]

CLEAN = ("No known vulnerabilities found", 0)
KNOWN = ("Found 1 known vulnerability in 1 package\nidna 3.6 PYSEC-2024-60", 1)


def audit(
    tmp_path: Path, locks: Said, known: Said = KNOWN, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The audit with a program in place of pip-audit.

    Parameters:
      locks: what it says of each lock.
      known: what it says of a package that is known to be vulnerable.
    """
    program = tmp_path / "pip-audit"
    answers = [f"cat <<'END'\n{words}\nEND\nexit {status}" for words, status in (known, locks)]
    program.write_text(f"""#!/bin/sh
case "$*" in *stdin*)
{answers[0]}
esac
{answers[1]}
""")
    program.chmod(0o755)
    return subprocess.run(
        [str(ROOT / "tests" / "audit")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "AUDIT": "", "PIP_AUDIT": str(program), **variables},
    )


@pytest.mark.parametrize(
    ("said", "ends", "says"),
    [
        (CLEAN, 0, "no known vulnerability"),
        (KNOWN, 1, "VULNERABLE"),
        (("ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed", 1), 1, "FAILED"),
        (("ERROR:pip_audit._cli:idna: Dependency not found on PyPI", 1), 1, "FAILED"),
    ],
)
def test_the_audit_is_of_every_lock(tmp_path: Path, said: Said, ends: int, says: str) -> None:
    """S62"""
    ended = audit(tmp_path, said)
    assert ended.returncode == ends, ended.stdout
    assert ended.stdout.count(f": {says}") == len(LOCKS) == 6


@pytest.mark.parametrize(
    "known",
    [CLEAN, ("ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed", 1)],
    ids=["without advisories", "away"],
)
def test_an_audit_that_checked_nothing_says_so_and_fails(tmp_path: Path, known: Said) -> None:
    """S62: an index that knows of no advisory has nothing to say against any package."""
    ended = audit(tmp_path, CLEAN, known)
    assert (ended.returncode, ended.stdout.count("NOT CHECKED")) == (1, 1)
    assert "no known vulnerability" not in ended.stdout
    allowed = audit(tmp_path, CLEAN, known, AUDIT="if-possible")
    assert (allowed.returncode, allowed.stdout) == (0, ended.stdout)


def test_the_list_of_packages_has_all_that_are_installed(tmp_path: Path) -> None:
    """S62: with the version and the hashes of each."""
    made = tmp_path / "sbom.json"
    lock = ROOT / "requirements.lock"
    program = Path(sys.executable).with_name("cyclonedx-py")
    options = ("--output-reproducible", "-o", str(made))
    subprocess.run([program, "requirements", str(lock), *options], check=True)
    listed = {
        f"{one['name']}=={one['version']}"
        for one in json.loads(made.read_text())["components"]
        if one["externalReferences"][0]["hashes"]
    }
    assert listed == set(re.findall(r"^[\w.-]+==[^\s;]+", lock.read_text(), re.MULTILINE))
