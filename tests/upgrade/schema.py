"""What tables, columns and indexes a database has."""

import json

from tests.release.program import Program

#: Run by the program's own interpreter, configured as the program is.
SHOW = """
import json
from mailpoll import database, runtime
runtime.start()
with database.connected():
    db = database.proxy.obj
    found = []
    for table in db.get_tables():
        for column in db.get_columns(table):
            kind = f"{column.data_type} {'null' if column.null else 'not null'}"
            found.append(f"{table}.{column.name} {kind}".lower())
        for index in db.get_indexes(table):
            unique = "unique index" if index.unique else "index"
            found.append(f"{table} {unique} {index.name} ({', '.join(map(str, index.columns))})")
print(json.dumps(found))
"""


def schema(program: Program, variables: dict[str, str]) -> set[str]:
    """The schema of the database that these variables lead to, a line for each part."""
    return set(json.loads(program.script(SHOW, **variables).splitlines()[-1]))
