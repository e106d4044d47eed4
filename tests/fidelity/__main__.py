"""Compare mailpoll with four other parsers on public test mail. ``make fidelity``.

Where at least three of the four agree, mailpoll should too: a field under the goal, or a message
that is refused, makes the exit code 1. Every difference goes to ``build/fidelity/differences.txt``.

One is counted apart, as kept: where the others agree that there is nothing to read in a message,
because its parts cannot be found or its type is none, mailpoll shows what there is.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from mailpoll.parsing import Unparsable, parse

from . import agreement, sources

GOAL = 99.5
HERE = Path(__file__).parent
BUILD = Path("build/fidelity").resolve()
NODE_PACKAGES = ("mailparser@3.14.2", "postal-mime@4.0.0")
DEBIAN_PACKAGES = ("gir1.2-gmime-3.0", "python3-gi", "libemail-mime-perl", "libtimedate-perl")
READERS = {
    "GMime": ["/usr/bin/python3", str(HERE / "readers" / "gmime_reader.py")],
    "Email::MIME": ["perl", str(HERE / "readers" / "email_mime.pl")],
    "mailparser": ["node", str(BUILD / "mailparser.mjs")],
    "postal-mime": ["node", str(BUILD / "postal_mime.mjs")],
}


def main() -> int:
    BUILD.mkdir(parents=True, exist_ok=True)
    _install()
    paths = sources.gather(BUILD)
    print(f"{len(paths):6}  messages")
    others = {name: _read(name, command, paths) for name, command in READERS.items()}
    ours = {str(path): _parse(path) for path in paths}
    return _report([str(path) for path in paths], ours, others)


def _install() -> None:
    if not (BUILD / "node_modules").is_dir():
        npm = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(BUILD)]
        subprocess.run([*npm, *NODE_PACKAGES], check=True)
    for script in (HERE / "readers").glob("*.mjs"):
        shutil.copy(script, BUILD)
    known = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${db:Status-Abbrev}", *DEBIAN_PACKAGES],
        capture_output=True,
        text=True,
        check=False,
    )
    if known.returncode or known.stdout.count("ii") < len(DEBIAN_PACKAGES):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        apt = ["apt-get", "install", "--yes", "--no-install-recommends", *DEBIAN_PACKAGES]
        subprocess.run(apt, check=True, env=environment)


def _read(name: str, command: list[str], paths: list[Path]) -> dict[str, agreement.Found]:
    """What a reader finds; a message that ends it counts as an error, and it is started again."""
    found: dict[str, agreement.Found] = {}
    left = [str(path) for path in paths]
    while left:
        run = subprocess.run(
            command, input="\n".join(left) + "\n", capture_output=True, text=True, check=False
        )
        for line in filter(None, run.stdout.split("\n")):
            one = json.loads(line)
            found[one["path"]] = one
        left = [path for path in left if path not in found]
        if left:
            found[left[0]] = {"error": f"ended with {run.returncode}: {run.stderr[-200:]}"}
            left = left[1:]
    print(f"{sum('error' in one for one in found.values()):6}  refused by {name}")
    return found


def _parse(path: Path) -> agreement.Found:
    try:
        return agreement.of_mailpoll(parse(path))
    except Unparsable as error:
        return {"error": str(error)}


def _report(
    paths: list[str],
    ours: dict[str, agreement.Found],
    others: dict[str, dict[str, agreement.Found]],
) -> int:
    refused = [path for path in paths if "error" in ours[path]]
    print(f"{len(refused):6}  refused by mailpoll {' '.join(refused)}\n")
    heads = "".join(f"{name:>13}" for name in READERS)
    print(f"{'field':12}{'agreed':>8}{'mailpoll':>10}{'with kept':>11}{heads}")
    low = bool(refused)
    with (BUILD / "differences.txt").open("w") as differences:
        for field in agreement.FIELDS:
            agreed, kept, same = 0, 0, dict.fromkeys(["mailpoll", *READERS], 0)
            for path in paths:
                values = {name: agreement.value(others[name][path], field) for name in READERS}
                wanted = agreement.majority(list(values.values()))
                if wanted is None:
                    continue
                agreed += 1
                values["mailpoll"] = agreement.value(ours[path], field)
                for name, each in values.items():
                    same[name] += each == wanted
                if values["mailpoll"] != wanted:
                    found = [reader[path] for reader in others.values()]
                    kept += field == "text" and _nothing_to_read(found)
                    got = values["mailpoll"][:2_000]
                    differences.write(f"{field} {path}\n  {wanted[:2_000]}\n  {got}\n")
            shares = {name: 100 * count / max(agreed, 1) for name, count in same.items()}
            with_kept = 100 * (same["mailpoll"] + kept) / max(agreed, 1)
            low = low or with_kept < GOAL
            line = "".join(f"{shares[name]:>13.2f}" for name in READERS)
            print(f"{field:12}{agreed:>8}{shares['mailpoll']:>10.2f}{with_kept:>11.2f}{line}")
    return int(low)


def _nothing_to_read(found: list[agreement.Found]) -> bool:
    """Whether at least three parsers saw neither text nor HTML."""
    bare = [not (one["text"].strip() or one["html"].strip()) for one in found if "error" not in one]
    return sum(bare) >= 3


if __name__ == "__main__":
    sys.exit(main())
