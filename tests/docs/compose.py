"""The schema of compose files, as check-jsonschema has it with it."""

import json
from importlib.resources import files
from typing import Any


def compose_schema() -> dict[str, Any]:
    place = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    found: dict[str, Any] = json.loads(place.read_text())
    return found
