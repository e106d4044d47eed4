"""A private PostgreSQL cluster on a free loopback port."""

import os
import signal
import subprocess
from pathlib import Path

import psycopg
from psycopg import sql

from tests.servers.process import Server, find_program, free_ports

SUPERUSER = "postgres"


class SpeaksPostgresql(Server):
    """Whatever answers to clients of PostgreSQL on a free port; started by root, as its user."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        (self.port,) = free_ports(1)
        if os.geteuid() == 0:
            self.user = "postgres"

    def answers(self) -> bool:
        try:
            with psycopg.connect(self.url(SUPERUSER), connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False

    def url(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}@{self.host}:{self.port}/{database}"


class Postgres(SpeaksPostgresql):
    """PostgreSQL without a password, TCP on loopback only.

    ``durable=False`` switches off fsync, which is right for tests; benchmarks that measure commits
    ask for ``durable=True``. Run by root, the server runs as the system's ``postgres`` user.
    """

    program = "postgres"
    stop_signal = signal.SIGINT  # "fast": does not wait for clients to leave

    def __init__(self, directory: Path, *, durable: bool = False) -> None:
        super().__init__(directory)
        self.durable = durable
        self.data = directory / "data"

    def prepare(self) -> list[str]:
        # The versioned directory comes first: what stands on PATH may be a wrapper.
        directories = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
        server = find_program("postgres", *directories)
        if not (self.data / "PG_VERSION").exists():
            self._initialise(find_program("initdb", *directories))
        settings = {
            "listen_addresses": self.host,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 500,
            "shared_buffers": "128MB",
            "timezone": "UTC",
        }
        if not self.durable:
            settings |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
        return [server, "-D", str(self.data), *(f"--{k}={v}" for k, v in settings.items())]

    def create_database(self, name: str, template: str = "template1") -> str:
        """Create a database, empty or the copy of another that nobody uses, and return its URL."""
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        self._execute(create.format(sql.Identifier(name), sql.Identifier(template)))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database and cut its connections; nothing happens if there is none."""
        drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
        self._execute(drop.format(sql.Identifier(name)))

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url(SUPERUSER), autocommit=True) as connection:
            connection.execute(statement)

    def _initialise(self, initdb: str) -> None:
        self.data.mkdir(mode=0o700, exist_ok=True)
        options = [f"--pgdata={self.data}", f"--username={SUPERUSER}", "--auth=trust"]
        options += ["--encoding=UTF8", "--no-locale", "--no-sync"]
        if self.user:
            self._admit_user()
            for path in (self.data, self.directory):
                subprocess.run(["chown", self.user, str(path)], check=True)
        with self.log.open("ab") as log:
            subprocess.run(
                [initdb, *options],
                check=True,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                user=self.user or None,
                group=self.user or None,
                extra_groups=[] if self.user else None,
            )


def _version(directory: Path) -> int:
    return int(directory.parent.name)
