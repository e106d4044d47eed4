"""The fenced code blocks of README, CONTRIBUTING and pages."""

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
#: Every kind that a test knows what to do with. ``text`` is what a program prints.
KINDS = ("sh", "python", "json", "ini", "yaml", "toml", "dotenv", "text")

#: A block may stand indented in a list.
FENCE = re.compile(r"^( *)```(\S*) ?([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """One block.

    Parameters:
      page: its file, from the root of the repository.
      line: where its fence stands.
      title: what the fence says beside its kind.
    """

    page: str
    line: int
    kind: str
    title: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def name(self) -> tuple[str, str]:
        """How a list names it: by page and first line."""
        return self.page, self.text.partition("\n")[0]


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            page=str(page.relative_to(ROOT)),
            line=text.count("\n", 0, match.start()) + 1,
            kind=match[2],
            title=match[3],
            text=dedent(match[4]),
        )
        for match in FENCE.finditer(text)
    ]


ALL = [block for page in pages() if page.exists() for block in blocks(page)]
