"""docs/updates.md: its tables are what the program says, and its settings are all there with their defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.config.tables import Updates
from agent.repository.reasons import CODES
from agent.updates.status import STATES, Status
from tests.updates import tables

TEXT = tables.DOCUMENT.read_text("utf-8")


def test_the_table_of_reasons_is_up_to_date() -> None:
    assert tables.replaced(TEXT, "reasons", tables.reasons_table()) == TEXT, "run: python -m tests.updates tables"


def test_every_reason_stands_in_the_table_once() -> None:
    rows = [line.split("|")[1:3] for line in tables.reasons_table().splitlines()[2:]]
    assert [code.strip(" `") for code, _ in rows] == list(CODES)
    assert all(heading.strip() for _, heading in rows)


def test_every_setting_is_told_of_with_its_default() -> None:
    settings = TEXT.partition("## Settings")[2].partition("\n## ")[0]
    told: dict[str, str] = {}
    for line in settings.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        keys = re.findall(r"`(\w+)`", cells[0]) if len(cells) == 3 else []
        if keys:
            told |= zip(keys, cells[1].split(", "), strict=True)
    defaults = Updates()
    assert told.keys() == set(Updates.__struct_fields__)
    sizes = {"GiB": 1 << 30, "MiB": 1 << 20}
    for key, text in told.items():
        default = getattr(defaults, key)
        if isinstance(default, int | float):
            number, _, unit = text.partition(" ")
            assert float(number) * sizes.get(unit, 1) == default, key
        elif default:
            assert text == f"`{default}`", key


def test_every_state_and_key_of_a_status_is_told_of() -> None:
    for word in (*STATES, *Status.__struct_fields__):
        assert f"`{word}`" in TEXT, word


def test_a_table_takes_the_place_of_the_one_before_and_of_nothing_else(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text("before\n<!-- x -->\nold\n<!-- /x -->\nafter <!-- y -->\n")
    tables.write("x", "new\n\n", document)
    assert document.read_text() == "before\n<!-- x -->\nnew\n<!-- /x -->\nafter <!-- y -->\n"


@pytest.mark.parametrize("text", [
    "", "<!-- x -->\n", "<!-- /x -->\n<!-- x -->\n", "<!-- x -->\n<!-- /x -->\n<!-- x -->\n<!-- /x -->\n",
])  # fmt: skip
def test_markers_that_do_not_stand_there_once_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        tables.replaced(text, "x", "new")
