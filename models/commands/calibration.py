"""The options of commands that calibrate."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from agent.errors import ModelError
from models.compress import ranges
from models.compress.report import Observed, write


def add_arguments(parser: argparse.ArgumentParser, rule: bool = True) -> None:
    """rule: whether there is a choice."""
    if rule:
        parser.add_argument(
            "--rule", default=ranges.DEFAULT_RULE,
            help="how calibration chooses an activation's range: minmax, percentile (or percentile:99.9), mse, entropy "
            f"(default: {ranges.DEFAULT_RULE})",
        )  # fmt: skip
    parser.add_argument(
        "--report", type=Path, metavar="FILE",
        help="what calibration saw and what each range costs: JSON if it ends in .json, else a table",
    )  # fmt: skip


def report(args: argparse.Namespace, observed: Sequence[Observed]) -> None:
    """Writes the report where one is asked for. Raises ``ModelError`` where nothing was calibrated."""
    if args.report is None:
        return
    if not observed:
        raise ModelError("--report: nothing was calibrated, for the source is quantized already")
    write(args.report, observed)
    print(f"wrote {args.report} ({len(observed)} activations)")
