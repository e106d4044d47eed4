"""What MkDocs is told beside ``mkdocs.yml``: pages from outside ``docs/``, and no other hosts.

Links are written as they work on a forge; here they are turned to where pages stand in the site.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
#: Pages that stand beside README, where forges look for them.
OUTSIDE = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "THIRD-PARTY.md")
#: What makes a browser ask somebody.
LOADS = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^\s>]*"
    r"|<link\b[^>]*\brel=[\"']?(?:stylesheet|preconnect|icon|preload)[^>]*\bhref=[\"']?(?:https?:)?//"
    r"|@import[^;]*//"
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside, and a list of the decisions."""
    for name in OUTSIDE:
        if (ROOT / name).exists():
            text = (ROOT / name).read_text().replace("](docs/", "](")
            files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "decisions/index.md", content=_decisions()))
    return files


def _decisions() -> str:
    lines = ["# Decisions", "", "What someone will ask about, and why it is so.", ""]
    for path in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")):
        title = path.read_text().partition("\n")[0].lstrip("# ")
        number, _, rest = path.stem.partition("-")
        del rest
        title = re.sub(r"^\d+\.\s*", "", title)
        lines.append(f"- {number} [{title}]({path.name})")
    return "\n".join(lines) + "\n"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead to where the pages from outside are here, and to the list of decisions."""
    for name in OUTSIDE:
        markdown = markdown.replace(f"](../{name}", f"]({name}")
    if page.file.src_uri.count("/"):
        return markdown
    return re.sub(r"\]\(decisions/?\)", "](decisions/index.md)", markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would load something from another host."""
    found = LOADS.search(output)
    if found:
        raise PluginError(f"{page.file.src_uri} loads from another host: {found[0][:200]}")
    return output
