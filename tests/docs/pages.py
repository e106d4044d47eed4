"""Make what pages repeat of the code: ``python -m tests.docs.pages``, as ``make pages`` does.

A test compares each with what the code says now.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mailpoll.imap.providers import PRESETS, Preset

DOCS = Path(__file__).parents[2] / "docs"
PROVIDERS = DOCS / "providers.md"
REFERENCE = DOCS / "api-reference.md"
MADE = re.compile(r"(<!-- made by `make pages`[^\n]*-->\n).*?(<!-- end -->)", re.DOTALL)
LOGINS = {"password": "password", "oauth2": "OAuth 2"}
REFERENCE_HEAD = """# API reference

Made from the OpenAPI document by `make pages`; not edited by hand. `/docs` of a running mailpoll
shows the same and lets you try it, `mailpoll openapi` prints the document. [API by example](api.md)
says how it is used.

A route needs a key with the scope that it names, or one of the scopes behind it: `read`, `operate`,
`admin`. Errors are problem documents ([Problem](#problem)).
"""


def main() -> None:
    PROVIDERS.write_text(with_presets(PROVIDERS.read_text()))
    REFERENCE.write_text(reference())


# --- providers


def with_presets(page: str) -> str:
    """The page with a table of the presets between its marks."""
    rows = "".join(map(_row, PRESETS))
    table = (
        f"| provider | addresses | server | logs in with | what to do | limits |\n{'| --- ' * 6}|\n"
    )
    made, count = MADE.subn(lambda match: f"{match[1]}\n{table}{rows}\n{match[2]}", page)
    assert count == 1
    return made


def _row(preset: Preset) -> str:
    limits = [
        *([f"{preset.connections} at once"] if preset.connections else []),
        *([f"{preset.logins_per_minute} logins a minute"] if preset.logins_per_minute else []),
        *([f"{preset.day_bytes // 1_000_000:,} MB a day"] if preset.day_bytes else []),
    ]
    help_ = preset.help[:1].upper() + preset.help[1:]
    cells = (
        preset.title,
        ", ".join(preset.domains) or "own domains",
        f"`{preset.host}`",
        ", ".join(LOGINS[way] for way in preset.auth),
        f"{help_} ([source]({preset.source}))",
        ", ".join(limits),
    )
    return f"| {' | '.join(cells)} |\n"


# --- the API


@cache
def openapi() -> dict[str, Any]:
    """The document, as ``mailpoll openapi`` prints it."""
    done = subprocess.run(
        [sys.executable, "-m", "mailpoll", "openapi"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        check=True,
        cwd=DOCS.parent,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def reference() -> str:
    """The OpenAPI document as a page."""
    spec = openapi()
    parts = [REFERENCE_HEAD]
    for tag in spec["tags"]:
        parts.append(f"\n## {tag['name'].capitalize()}\n\n{tag.get('description', '')}.\n")
        for path, operations in spec["paths"].items():
            for method, operation in operations.items():
                if tag["name"] in operation.get("tags", []):
                    parts += _operation(method.upper(), path, operation)
    parts.append("\n## Schemas\n")
    for name, schema in sorted(spec["components"]["schemas"].items()):
        if not name.endswith("Query"):  # their fields stand with their routes
            parts += _schema(name, schema)
    return "".join(parts)


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"\n### {method} {path}\n\n{_sentence(operation)}\n"
    scopes = sorted(
        {s for need in operation.get("security", []) for all_ in need.values() for s in all_}
    )
    yield f"\nScope: {', '.join(f'`{scope}`' for scope in scopes) or 'none; open'}.\n"
    asked = [p for p in operation.get("parameters", []) if p["in"] != "path"]
    if asked:
        yield "\n| parameter | type | meaning |\n| --- | --- | --- |\n"
        for parameter in asked:
            needed = ", required" if parameter.get("required") else ""
            meaning = _cell(parameter.get("description") or parameter["schema"].get("description"))
            yield f"| `{parameter['name']}` | {_type(parameter['schema'])}{needed} | {meaning} |\n"
    content = operation.get("requestBody", {}).get("content", {})
    for body in content.values():
        yield f"\nBody: {_type(body['schema'])}.\n"
    yield "\n"
    for status, answer in sorted(operation["responses"].items()):
        if status.startswith("2"):
            kinds = {
                _type(found["schema"])
                for found in answer.get("content", {}).values()
                if "schema" in found
            }
            yield f"Answers {status}{': ' if kinds else ''}{', '.join(sorted(kinds))}.\n"
    problems = sorted(status for status in operation["responses"] if not status.startswith("2"))
    if problems:
        yield f"Problems: {', '.join(problems)}.\n"


def _sentence(operation: dict[str, Any]) -> str:
    said = operation.get("summary", ""), operation.get("description", "")
    return "\n\n".join(_plain(text) for text in said if text.strip())


def _plain(text: str) -> str:
    joined = "\n".join(line.strip() for line in text.strip().splitlines()).replace("``", "`")
    return joined if joined.endswith((".", "!", "?")) else f"{joined}."


def _schema(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"\n### {name}\n"
    if schema.get("description"):
        yield f"\n{_plain(schema['description'])}\n"
    if "enum" in schema:
        yield f"\nOne of {', '.join(f'`{value}`' for value in schema['enum'])}.\n"
    fields = schema.get("properties", {})
    if fields:
        needed = set(schema.get("required", []))
        yield "\n| field | type | meaning |\n| --- | --- | --- |\n"
        for field, of in fields.items():
            required = ", required" if field in needed and "default" not in of else ""
            default = of.get("default")
            meaning = _cell(of.get("description"))
            if default not in (None, [], {}):
                meaning = f"{meaning} Default: `{json.dumps(default)}`.".strip()
            yield f"| `{field}` | {_type(of)}{required} | {meaning} |\n"


def _type(schema: dict[str, Any]) -> str:
    """A schema in a word or two, with a link to one that has a name."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return " or ".join(dict.fromkeys(map(_type, schema[word])))
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    low, high = schema.get("minimum"), schema.get("maximum")
    span = f" {low} to {high}" if low is not None and high is not None else ""
    return f"{schema.get('format', kind)}{span}" if kind == "string" else f"{kind}{span}"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("``", "`")


if __name__ == "__main__":
    main()
