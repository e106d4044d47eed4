"""Dovecot 2.3: a real IMAP server for any number of users, all with one password."""

import getpass
import grp
import itertools
import os
import pwd
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from imapclient.imap_utf7 import encode as encode_mailbox_name

from tests.servers.certificates import write_certificates
from tests.servers.process import Server, ServerFailedError, accepts, find_program, free_ports

_sequence = itertools.count(1)  # makes the names of one process differ within a microsecond

MAIL_USER = "nobody"  # owns the mail when Dovecot runs as root: it refuses to serve root's mail

# The limits are far above what tests need: a test must meet mailpoll's limits, not Dovecot's.
CONFIGURATION = """
protocols = imap
listen = 127.0.0.1
base_dir = {directory}/run
state_dir = {directory}/run
log_path = {directory}/dovecot.log
instance_name = mailpoll-test-{imap_port}
default_internal_user = {internal_user}
default_internal_group = {internal_group}
default_login_user = {login_user}
default_process_limit = 4096
default_client_limit = 16000
default_vsz_limit = 4G
shutdown_clients = yes

ssl = yes
ssl_cert = <{certificate}
ssl_key = <{key}
disable_plaintext_auth = no
auth_mechanisms = plain login
auth_failure_delay = 0
auth_worker_max_count = 8
mail_max_userip_connections = 10000
mail_fsync = never
imap_id_send = name * version *

passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={mail_user} gid={mail_group} home={directory}/mail/%u
}}
mail_location = maildir:~/Maildir:LAYOUT=fs
first_valid_uid = 1
first_valid_gid = 1
namespace inbox {{
  inbox = yes
  separator = /
  mailbox Sent {{
    special_use = \\Sent
  }}
  mailbox Drafts {{
    special_use = \\Drafts
  }}
  mailbox Trash {{
    special_use = \\Trash
  }}
  mailbox Junk {{
    special_use = \\Junk
  }}
  mailbox Archive {{
    special_use = \\Archive
  }}
}}

service anvil {{
  chroot =
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
  chroot =
}}
service imap-login {{
  chroot =
  service_count = 0
  process_min_avail = 2
  process_limit = 16
  inet_listener imap {{
    port = {imap_port}
  }}
  inet_listener imaps {{
    port = {imaps_port}
    ssl = yes
  }}
}}
service imap {{
  service_count = 256
  process_limit = 4096
}}
"""


class Dovecot(Server):
    """IMAP on ``imap_port`` (plain and STARTTLS) and ``imaps_port`` (TLS), loopback only.

    Every user name exists; ``password`` is right for all of them and any other is refused. Folder
    names are hierarchical with ``/``. TLS certificates are for ``localhost`` and ``127.0.0.1`` and
    signed by ``ca_file``.

    Mail is stored as Maildir: a message delivered with CRLF line ends is served byte for byte as
    delivered, bare LF is served as CRLF, and NUL is served as 0x80.
    """

    program = "dovecot"
    password = "secret"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.imap_port, self.imaps_port = free_ports(2)
        self.ca_file = directory / "ca.pem"
        self._as_root = os.geteuid() == 0
        self._mail_user = MAIL_USER if self._as_root else getpass.getuser()
        self._mail_ids = pwd.getpwnam(self._mail_user)[2:4]

    def prepare(self) -> list[str]:
        program = find_program("dovecot")
        _require_2_3(program)
        if self._as_root:
            self.user = "root"
            self._admit_user()
        if not self.ca_file.exists():
            write_certificates(self.directory)
        # Dovecot makes the home of a user without mail by itself, but not as root here.
        self._make_directory(self.directory / "mail")
        configuration = self.directory / "dovecot.conf"
        configuration.write_text(self._configuration())
        return [program, "-F", "-c", str(configuration)]

    def answers(self) -> bool:
        return accepts(self.imap_port) and accepts(self.imaps_port)

    def deliver(
        self, user: str, raw: bytes, folder: str = "INBOX", received_at: float | None = None
    ) -> None:
        """Put one message into a user's folder, which is created if need be.

        ``received_at`` (seconds since 1970; default now) becomes its INTERNALDATE.
        """
        self.deliver_many(user, [raw], folder, received_at)

    def deliver_many(
        self,
        user: str,
        raws: Iterable[bytes],
        folder: str = "INBOX",
        received_at: float | None = None,
    ) -> None:
        """Put messages into one folder; they get UIDs in this order."""
        maildir = self._maildir(user, folder)
        for raw in raws:
            # Dovecot orders new mail by the seconds and microseconds of its name.
            second, micro = divmod(time.time_ns() // 1000, 1_000_000)
            unique = f"{second}.M{micro:06}P{os.getpid()}Q{next(_sequence)}.test,S={len(raw)}"
            spool = maildir / "tmp" / unique
            spool.write_bytes(raw)
            if received_at is not None:
                os.utime(spool, (received_at, received_at))
            self._give_to_mail_user(spool)
            spool.rename(maildir / "new" / unique)

    def _maildir(self, user: str, folder: str) -> Path:
        home = self.directory / "mail" / user.lower()
        parts = [] if folder == "INBOX" else encode_mailbox_name(folder).decode().split("/")
        maildir = home.joinpath("Maildir", *parts)
        if not (maildir / "new").exists():
            for name in ("cur", "tmp", "new"):
                self._make_directory(maildir / name)
        return maildir

    def _make_directory(self, path: Path) -> None:
        if path == self.directory or path.exists():
            return
        self._make_directory(path.parent)
        path.mkdir(exist_ok=True)
        self._give_to_mail_user(path)

    def _give_to_mail_user(self, path: Path) -> None:
        if self._as_root:
            os.chown(path, *self._mail_ids)

    def _configuration(self) -> str:
        mail_group = grp.getgrgid(self._mail_ids[1]).gr_name
        return CONFIGURATION.format(
            directory=self.directory,
            imap_port=self.imap_port,
            imaps_port=self.imaps_port,
            password=self.password,
            certificate=self.directory / "server.pem",
            key=self.directory / "server.key",
            mail_user=self._mail_user,
            mail_group=mail_group,
            internal_user="dovecot" if self._as_root else self._mail_user,
            internal_group="dovecot" if self._as_root else mail_group,
            login_user="dovenull" if self._as_root else self._mail_user,
        )


def _require_2_3(program: str) -> None:
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    if not re.match(r"2\.3\.", version.stdout):
        raise ServerFailedError(
            f"the tests are written for Dovecot 2.3, not {version.stdout.strip()}"
        )
