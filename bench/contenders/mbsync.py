"""isync's mbsync, which is written in C and keeps Maildirs: as it comes, and eight at once."""

import shutil
from pathlib import Path

from bench.contenders.contender import Program

AT_ONCE = 8

ACCOUNT = """
IMAPAccount {user}
Host {host}
Port {port}
User {user}
Pass {password}
SSLType IMAPS
CertificateFile {ca_file}

IMAPStore {user}-far
Account {user}

MaildirStore {user}-near
Path {mail}/
Inbox {mail}/INBOX
SubFolders Verbatim

Channel {user}
Far :{user}-far:
Near :{user}-near:
Patterns *
Create Near
Sync Pull
SyncState *
"""


class Mbsync(Program):
    """`mbsync -a`: one mailbox after the other."""

    name = "mbsync"

    @classmethod
    def installed(cls) -> bool:
        return shutil.which("mbsync") is not None

    def command(self) -> list[str]:
        return ["mbsync", "-q", "-a", "-c", str(self._configure("mbsyncrc", self.server.users))]

    def _configure(self, name: str, users: list[str]) -> Path:
        path = self.directory / name
        path.write_text("".join(self._account(user) for user in users))
        return path

    def _account(self, user: str) -> str:
        server, mail = self.server, self.directory / "mail" / user
        mail.mkdir(parents=True, exist_ok=True)
        return ACCOUNT.format(
            user=user,
            host=server.host,
            port=server.port,
            password=server.password,
            ca_file=server.ca_file,
            mail=mail,
        )

    def verified(self, sent: set[str]) -> int:
        """As many as there are files: it adds a header to what it stores."""
        files = (self.directory / "mail").glob("*/INBOX/[cn][ue][rw]/*")
        return min(len(sent), sum(1 for _ in files))


class Mbsync8(Mbsync):
    """A process for each mailbox, eight at a time."""

    name = "mbsync8"

    def command(self) -> list[str]:
        files = [self._configure(f"{user}.rc", [user]) for user in self.server.users]
        names = self.directory / "all"
        names.write_text("".join(f"{file}\n" for file in files))
        each = f"xargs -P {AT_ONCE} -n 1 mbsync -q -a -c"
        return ["sh", "-c", f'{each} < "$0"', str(names)]
