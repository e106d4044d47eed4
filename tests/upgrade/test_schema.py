"""The upgrade check sees a schema that is not that of a new installation."""

import sqlite3
import sys
from pathlib import Path

from mailpoll.models import TABLES
from mailpoll.settings import new_token
from tests.release.program import Program
from tests.upgrade.schema import schema


def test_a_changed_table_is_seen(tmp_path: Path) -> None:
    variables = {"MAILPOLL_DATA_DIR": str(tmp_path / "data"), "MAILPOLL_API_TOKEN": new_token()}
    program = Program(Path(sys.executable), tmp_path, variables, 1)
    program.run("migrate")
    before = schema(program, {})
    for table in TABLES:
        name = table._meta.table_name  # type: ignore[attr-defined]
        assert any(line.startswith(f"{name}.") for line in before), name
    with sqlite3.connect(tmp_path / "data" / "mailpoll.db") as database:
        database.execute("ALTER TABLE alarms ADD COLUMN more TEXT")
        database.execute("CREATE INDEX more ON alarms (more)")
    assert schema(program, {}) - before == {
        "alarms.more text null",
        "alarms index more (more)",
    }
