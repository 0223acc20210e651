"""Tables and paragraphs of Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines; every row has as many cells as the head."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        assert len(row) == len(head)
        lines.append("| " + " | ".join(str(cell) for cell in row) + " |")
    return lines


def paragraph(*sentences: str) -> list[str]:
    """Lines of at most 120 columns, after an empty one."""
    return ["", *textwrap.wrap(" ".join(sentences), 120, break_long_words=False, break_on_hyphens=False)]


def percent(share: float | None) -> str:
    """A share for people."""
    return "–" if share is None else f"{100 * share:.0f} %"
