"""Build what is released, install it away from the checkout, and see it work.

``python -m tests.release``, as ``make release-check`` does; leaves the files in ``dist/``.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mailpoll import __version__
from tests.integration.system import PASSWORD
from tests.integration.test_message_read import letter
from tests.release.program import Broken, Program, expect, wait_until
from tests.servers.dovecot import Dovecot
from tests.servers.process import free_ports

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"
ADDRESS = "release@example.org"


def main() -> None:
    directory = Path(tempfile.mkdtemp(prefix="mailpoll-release-"))
    directory.chmod(0o755)  # Dovecot drops root's rights and must get in
    try:
        wheel = build()
        say(f"built {', '.join(sorted(path.name for path in DIST.iterdir()))}")
        python = install(wheel, directory / "environment")
        say("installed with the locked packages")
        with Dovecot(directory / "dovecot") as dovecot:
            smoke(python, directory, dovecot)
    except (Broken, subprocess.CalledProcessError) as error:
        sys.exit(f"release check: {error}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    say("all is well")


def say(text: str) -> None:
    print(f"release check: {text}", flush=True)


def build() -> Path:
    """Build both distributions from the checkout, and have their metadata checked; the wheel."""
    shutil.rmtree(DIST, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    files = sorted(map(str, DIST.iterdir()))
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)
    (wheel,) = DIST.glob(f"mailpoll-{__version__}-*.whl")
    expect(len(files) == 2, f"dist/ should have two files: {files}")
    return wheel


def install(wheel: Path, environment: Path) -> Path:
    """An environment of its own with the locked packages and the wheel; its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    lock = ["--require-hashes", "-r", str(ROOT / "requirements.lock")]
    subprocess.run([*pip, *lock], check=True, cwd=environment)
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True, cwd=environment)
    subprocess.run([python, "-m", "pip", "check"], check=True, stdout=subprocess.DEVNULL)
    return python


def smoke(python: Path, directory: Path, dovecot: Dovecot) -> None:
    """From an empty directory to a stored mail."""
    home = directory / "home"
    home.mkdir()
    (port,) = free_ports(1)
    program = Program(
        python,
        home,
        {
            "MAILPOLL_IMAP_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",
            "MAILPOLL_IMAP_CA_FILE": str(dovecot.ca_file),
            "MAILPOLL_IMAP_PORTS": str(dovecot.imaps_port),
            "MAILPOLL_WORKER_PROCESSES": "1",
        },
        port,
    )
    version = program.run("--version").strip()
    expect(version == f"mailpoll, version {__version__}", f"it says {version!r}")
    say(version)
    dovecot.deliver(ADDRESS, letter({"plain.txt": "text/plain"}))
    program.start("up")
    try:
        token = home / "data" / "api.token"
        wait_until(token.exists, "a token")
        program.token = token.read_text().strip()
        wait_until(program.ready, "/readyz")
        say("`mailpoll up` is ready")
        new = {
            "address": ADDRESS,
            "password": PASSWORD,
            "host": "localhost",
            "port": dovecot.imaps_port,
        }
        account = program.ask("POST", "/admin/email-accounts", new)["id"]

        def stored() -> bool:
            found = program.messages(account).values()
            return [message["status"] for message in found] == ["processed"]

        wait_until(stored, "the mail to be processed")
        (message,) = program.messages(account).values()
        expect(program.raw_sha256(message["id"]) == message["sha256"], "other bytes came back")
        expect(message["attachment_count"] == 1, "the attachment is missing")
        say("a mail is stored, processed and comes back byte for byte")
    finally:
        program.stop()
    expect("Traceback" not in program.log.read_text(), program.log.read_text()[-3_000:])


if __name__ == "__main__":
    main()
