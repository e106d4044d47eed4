"""What a benchmark found: text, tables and plots, kept as JSON from which the report is made."""

import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

#: Where results lie, one file for each benchmark, beside the pictures made of them.
DIRECTORY = Path(__file__).parent.parent / "docs" / "performance"

#: How programs tell their version, and where it stands in what they print.
PROGRAMS = {
    "Dovecot": (["dovecot", "--version"], r"([\d.]+)"),
    "PostgreSQL": (["postgres", "--version"], r"([\d.]+)"),
    "Redis": (["redis-server", "--version"], r"v=([\d.]+)"),
    "mbsync": (["mbsync", "--version"], r"([\d.]+)"),
    "offlineimap": (["offlineimap", "--version"], r"([\d.]+)"),
}


def machine() -> dict[str, str]:
    """This machine and the versions of what is measured on it; programs that are missing too."""
    return {
        "cores": str(os.cpu_count()),
        "processor": _line_of("/proc/cpuinfo", "model name"),
        "memory": f"{int(_line_of('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        "system": f"{_system()}, Linux {'.'.join(platform.release().split('.')[:2])}",
        "Python": platform.python_version()
        + (", the system's" if sys.base_prefix == "/usr" else ""),
        **{name: _version(*how) for name, how in PROGRAMS.items()},
    }


def _line_of(file: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.+)$", Path(file).read_text(), re.MULTILINE)
    return found[1] if found else "0 (not told)"


def _system() -> str:
    return platform.freedesktop_os_release()["PRETTY_NAME"]


def _version(command: list[str], pattern: str) -> str:
    # Debian keeps PostgreSQL's programs and Dovecot away from the PATH of users.
    servers = [*map(str, Path("/usr/lib/postgresql").glob("*/bin")), "/usr/sbin"]
    path = os.pathsep.join([os.environ.get("PATH", ""), *servers])
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
        )
    except FileNotFoundError:
        return "not installed"
    found = re.search(pattern, answer.stdout)
    return found[1] if found else answer.stdout.strip()


Cell = str | int | float | None


def shown(cell: Cell) -> str:
    """A cell as people read it: a dash for nothing, numbers with the digits that tell."""
    if cell is None:
        return "\N{EN DASH}"
    if isinstance(cell, float):
        digits = 2 if abs(cell) < 10 else 1 if abs(cell) < 100 else 0
        return f"{cell:,.{digits}f}"
    return f"{cell:,}" if isinstance(cell, int) else cell.replace("|", r"\|")


@dataclass(slots=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[Cell]]

    def markdown(self) -> str:
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        rows = "\n".join("| " + " | ".join(map(shown, line)) + " |" for line in lines)
        return f"**{self.title}**\n\n{rows}"


@dataclass(slots=True)
class Plot:
    """A picture; each series has a value, or ``None``, for each entry of ``x``.

    Parameters:
      name: the picture's file name without ending.
      log: the scale of the values is logarithmic.
    """

    name: str
    title: str
    kind: Literal["bars", "lines"]
    x: list[Cell]
    x_label: str
    y_label: str
    log: bool
    series: dict[str, list[float | None]]


@dataclass(slots=True)
class Result:
    """All that the report says of one benchmark."""

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    machine: dict[str, str] = field(default_factory=machine)
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that ``save`` or another program wrote, which may have kept more in it."""
        names = {one.name for one in fields(cls)}
        kept: dict[str, Any] = json.loads(path.read_text())
        found = {name: value for name, value in kept.items() if name in names}
        found["tables"] = [Table(**table) for table in found["tables"]]
        found["plots"] = [Plot(**plot) for plot in found["plots"]]
        return cls(**found)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
