"""offlineimap3, which is written in Python and keeps Maildirs: eight accounts at once."""

import shutil

from bench.contenders.contender import Program

AT_ONCE = 8

GENERAL = """
[general]
accounts = {accounts}
maxsyncaccounts = {at_once}
metadata = {directory}/metadata
ui = quiet
"""

ACCOUNT = """
[Account {name}]
localrepository = {name}-near
remoterepository = {name}-far

[Repository {name}-near]
type = Maildir
localfolders = {directory}/mail/{name}

[Repository {name}-far]
type = IMAP
remotehost = {host}
remoteport = {port}
remoteuser = {user}
remotepass = {password}
ssl = yes
sslcacertfile = {ca_file}
readonly = True
"""


class Offlineimap(Program):
    name = "offlineimap"
    slow = True

    @classmethod
    def installed(cls) -> bool:
        return shutil.which("offlineimap") is not None

    def command(self) -> list[str]:
        path = self.directory / "offlineimaprc"
        (self.directory / "mail").mkdir(exist_ok=True)
        path.write_text(self._configuration())
        return ["offlineimap", "-o", "-c", str(path)]

    def _configuration(self) -> str:
        server = self.server
        names = {user.partition("@")[0]: user for user in server.users}
        general = GENERAL.format(
            accounts=",".join(names), at_once=AT_ONCE, directory=self.directory
        )
        return general + "".join(
            ACCOUNT.format(
                name=name,
                user=user,
                host=server.host,
                port=server.port,
                password=server.password,
                ca_file=server.ca_file,
                directory=self.directory,
            )
            for name, user in names.items()
        )

    def verified(self, sent: set[str]) -> int:
        """As many as there are files: it adds a header to what it stores."""
        files = (self.directory / "mail").glob("*/INBOX/[cn][ue][rw]/*")
        return min(len(sent), sum(1 for _ in files))
