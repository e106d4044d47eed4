"""Fuzz the parser: any bytes in, a storable message out. Arguments are libFuzzer's.

The first argument that is no option is the directory of inputs; it is filled with seeds.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mailpoll.parsing"]):
    from mailpoll.parsing import fast, parse, standard
    from mailpoll.parsing.outline import outline

from mailpoll.demo import corpus
from tests.unit.parsing.invariants import check

LARGEST_SEED = 20_000
MESSAGES = Path(__file__).parents[1] / "fidelity" / "messages"


def one(data: bytes) -> None:
    """Read the bytes as a message, whole and reduced, by both parsers; nothing is refused."""
    check(parse(data))
    reduced = outline(data, max_leaf=64)
    standard.read(reduced)
    fast.read(reduced.message, reduced)


def seed(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    own = [path.read_bytes() for path in sorted(MESSAGES.glob("*.eml"))]
    for number, raw in enumerate([*own, *corpus.mailbox(0), *corpus.mailbox(1)]):
        if len(raw) <= LARGEST_SEED:
            (directory / f"seed-{number}").write_bytes(raw)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if not argument.startswith("-"):
            seed(Path(argument))
            break
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
