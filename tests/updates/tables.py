"""The tables of docs/updates.md that a program knows better than a person.

    write("reasons", reasons_table())

A table stands between ``<!-- name -->`` and ``<!-- /name -->``; all else in a document is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from agent.files import write_atomically
from agent.repository import reasons

DOCUMENT = Path(__file__).parents[2] / "docs" / "updates.md"


def replaced(document: str, name: str, text: str) -> str:
    """The document with ``text`` between the markers of ``name``. Raises ``ValueError`` where they do not stand there
    once each, in their order.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = document.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended or begin in rest or end in after:
        raise ValueError(f"the document must hold {begin.strip()} and {end} once each, in this order")
    return f"{before}{begin}{text.strip()}\n{end}{after}"


def write(name: str, text: str, path: Path = DOCUMENT) -> None:
    """Replaces what stands between the markers of ``name`` in a document, whole or not at all."""
    write_atomically(path, replaced(path.read_text("utf-8"), name, text).encode())


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """In Markdown."""
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in cells)


def reasons_table() -> str:
    """All codes, under the headings of the source."""
    heading, headings = "", {}
    for line in Path(reasons.__file__).read_text("utf-8").splitlines():
        if line.startswith("    # "):
            heading = line.removeprefix("    # ")
        elif found := re.match(r'    "(\w+)": "', line):
            headings[found[1]] = heading
    return table(
        ("code", "of", "meaning"), ((f"`{code}`", headings[code], text) for code, text in reasons.CODES.items())
    )
