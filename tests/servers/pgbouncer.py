"""PgBouncer before a PostgreSQL: connections for a session or for a transaction."""

from enum import StrEnum
from pathlib import Path

from tests.servers.postgres import SUPERUSER, Postgres, SpeaksPostgresql
from tests.servers.process import find_program

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


class PgBouncer(SpeaksPostgresql):
    """Has few connections, so that its clients use each other's."""

    program = "pgbouncer"

    def __init__(self, directory: Path, postgres: Postgres, mode: Mode, connections: int) -> None:
        super().__init__(directory)
        self.postgres, self.mode, self.connections = postgres, mode, connections

    def prepare(self) -> list[str]:
        file = self.directory / "pgbouncer.ini"
        file.write_text(SETTINGS.format(**vars(self) | {"user": SUPERUSER}))
        return [find_program("pgbouncer"), str(file)]
