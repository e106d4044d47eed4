"""Contenders that are modules of this package, each run as a process of its own."""

import json
import sys
from pathlib import Path
from typing import Any

from bench.contenders.contender import Program


class Script(Program):
    """Its module is given one JSON file: the server, and whatever it wrote there the last time."""

    module: str

    def command(self) -> list[str]:
        if not self._job.exists():
            server = self.server
            what = {
                "host": server.host,
                "port": server.port,
                "ca_file": str(server.ca_file),
                "users": server.users,
                "password": server.password,
                "directory": str(self.directory),
            }
            self._job.write_text(json.dumps(what))
        return [sys.executable, "-m", self.module, str(self._job)]

    def known(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._job.read_text())
        return found

    @property
    def _job(self) -> Path:
        return self.directory / "job.json"
