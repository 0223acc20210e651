"""What calibration saw and chose, activation by activation: as JSON and as a table.

write(Path("calibration.json"), converted.meta["calibration"])   # a table, if it is named otherwise
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.files import write_atomically
from models.compress import ranges


class Observed(msgspec.Struct, frozen=True):
    """An activation under calibration. Decibels are the signal's power over an error's; None where there is no error.

    least, greatest: what was seen; low, high: the range chosen. clipped: the share of values beyond it. clipping_db and
    rounding_db: of what is lost beyond the range, and inside it; sqnr_db: of both; minmax_sqnr_db: what the range from
    least to greatest would have given.
    """

    tensor: str
    rule: str
    values: int
    least: float
    greatest: float
    low: float
    high: float
    scale: float
    zero_point: int
    clipped: float
    clipping_db: float | None
    rounding_db: float | None
    sqnr_db: float | None
    minmax_sqnr_db: float | None

    @classmethod
    def of(cls, tensor: str, rule: str, h: ranges.Histogram, low: float, high: float) -> Observed:
        """What a histogram says of a range."""
        scale, zero_point = ranges.affine(low, high)
        cost, minmax = ranges.cost(h, low, high), ranges.cost(h, *ranges.choose(h, "minmax"))
        decibels = (cost.clipping_db, cost.rounding_db, cost.sqnr_db, minmax.sqnr_db)
        return cls(tensor, rule, h.total, h.least, h.greatest, low, high, float(scale), zero_point, cost.clipped,
                   *(d if math.isfinite(d) else None for d in decibels))  # fmt: skip


def as_json(observed: Sequence[Observed]) -> str:
    """A list of objects, by the fields of ``Observed``."""
    return msgspec.json.format(msgspec.json.encode(observed)).decode() + "\n"


def as_table(observed: Sequence[Observed]) -> str:
    """For people: a row an activation, in order of execution."""
    head = ("activation", "least", "greatest", "low", "high", "clipped", "clipping dB", "rounding dB", "SQNR dB",
            "minmax's")  # fmt: skip
    rows = [head]
    for o in observed:
        decibels = (o.clipping_db, o.rounding_db, o.sqnr_db, o.minmax_sqnr_db)
        rows.append((
            o.tensor, *(f"{v:.4g}" for v in (o.least, o.greatest, o.low, o.high)), f"{100 * o.clipped:.4f} %",
            *("-" if d is None else f"{d:.1f}" for d in decibels),
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join((row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))))
             for row in rows]  # fmt: skip
    rule = observed[0].rule if observed else "none"
    return "\n".join((f"rule: {rule}", *lines, ""))


def write(path: Path, observed: Sequence[Observed]) -> None:
    """JSON, if the name ends in .json, else the table. Raises OSError."""
    write_atomically(path, (as_json if path.suffix == ".json" else as_table)(observed).encode())
