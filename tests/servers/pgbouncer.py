"""PgBouncer before a PostgreSQL: connections for a session or for a transaction."""

import os
from enum import StrEnum
from pathlib import Path

import psycopg

from tests.servers.postgres import SUPERUSER, Postgres
from tests.servers.process import Server, find_program, free_ports

SETTINGS = """[databases]
* = host={postgres.host} port={postgres.port} user={user}
[pgbouncer]
listen_addr = {host}
listen_port = {port}
auth_type = any
pool_mode = {mode}
default_pool_size = {connections}
max_client_conn = 500
unix_socket_dir =
"""


class Mode(StrEnum):
    SESSION = "session"
    TRANSACTION = "transaction"


class PgBouncer(Server):
    """Has few connections, so that its clients use each other's."""

    program = "pgbouncer"

    def __init__(self, directory: Path, postgres: Postgres, mode: Mode, connections: int) -> None:
        super().__init__(directory)
        (self.port,) = free_ports(1)
        self.postgres, self.mode, self.connections = postgres, mode, connections
        if os.geteuid() == 0:
            self.user = "postgres"

    def prepare(self) -> list[str]:
        file = self.directory / "pgbouncer.ini"
        file.write_text(SETTINGS.format(**vars(self) | {"user": SUPERUSER}))
        return [find_program("pgbouncer"), str(file)]

    def answers(self) -> bool:
        try:
            with psycopg.connect(self.url(SUPERUSER), connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False

    def url(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}@{self.host}:{self.port}/{database}"
