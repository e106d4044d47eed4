"""The machine that a benchmark ran on, as its readers want to know it."""

import os
import platform
import re
from pathlib import Path


def describe() -> dict[str, str | int]:
    """Processor, cores, memory in GB, kernel and Python."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _model(),
        "cores": os.cpu_count() or 0,
        "memory_gb": round(memory / 2**30),
        "system": " ".join([platform.system(), *re.findall(r"^\d+\.\d+", platform.release())]),
        "python": platform.python_version(),
    }


def _model() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()
