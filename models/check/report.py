"""What a check found, for people and as JSON (``msgspec.json.encode(report)``)."""

from __future__ import annotations

import msgspec

from agent.commands.names import abridged
from models.check.compare import Agreement

BAD = 0.99  # a layer of which fewer elements are within a step is where things go wrong


class Report(msgspec.Struct, kw_only=True):
    """inputs: how many were compared. not_compared: outputs that the source lacks. golden, golden_equal: how many
    golden pairs the file holds, and how many come out byte for byte. layers: in order of execution; None if not asked
    for. top1, first_difference and first_bad_layer follow from the others.
    """

    model: str
    against: str
    inputs: int
    outputs: list[Agreement]
    not_compared: list[str]
    golden: int
    golden_equal: int
    layers: list[Agreement] | None = None
    top1: float = 1.0
    first_difference: str | None = None
    first_bad_layer: str | None = None

    def __post_init__(self) -> None:
        self.top1 = min((o.top1 for o in self.outputs if o.top1 is not None), default=1.0)
        self.first_difference = next((o.tensor for o in self.layers or () if o.equal < 1), None)
        bad = (o.tensor for o in self.layers or () if o.within is not None and o.within < BAD)
        self.first_bad_layer = next(bad, None)

    def passes(self, at_least: float) -> bool:
        """Whether the top-1 agreement of every output is high enough (0..1), and the golden pairs come out."""
        return self.top1 >= at_least and self.golden_equal == self.golden


def as_text(r: Report) -> str:
    """The report for people."""
    lines = [
        f"{r.model} against {r.against}, {r.inputs} inputs; golden pairs: {r.golden_equal} of {r.golden} equal",
        "",
    ]
    lines += _table("output", r.outputs, None)
    lines += [f"not compared, for the source lacks it: {name}" for name in r.not_compared]
    if r.layers is not None:
        lines += ["", *_table("layer", r.layers, r.first_bad_layer)]
        lines.append(f"first layer that differs at all: {r.first_difference or 'none'}")
        lines.append(f"first layer below {100 * BAD:.0f} % within a step: {r.first_bad_layer or 'none'}")
    return "\n".join(lines)


def _table(what: str, rows: list[Agreement], marked: str | None) -> list[str]:
    cells = [(what, "operator", "shape", "top-1", "equal", "within 1", "at most", "SQNR dB", "")]
    cells += [
        (
            abridged(a.tensor), a.operator, "x".join(map(str, a.shape)), _percent(a.top1), _percent(a.equal),
            _percent(a.within),
            "-" if a.largest_steps is None else str(a.largest_steps),
            "same" if a.sqnr_db is None else f"{a.sqnr_db:.1f}", "<- here" if a.tensor == marked else "",
        )
        for a in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = (*[str.ljust] * 3, *[str.rjust] * 6)
    padded = ([side(c, w) for side, c, w in zip(sides, row, widths, strict=True)] for row in cells)
    return ["  ".join(row).rstrip() for row in padded]


def _percent(share: float | None) -> str:
    """Rounded down, so that 100.00 % is all."""
    return "-" if share is None else f"{int(share * 10_000) / 100:.2f} %"
