"""Writes docs/performance.md: what ``make bench`` measures, with the machine, the versions and the date.

    python -m bench.report [--only networks,loading,kernels,roundtrip]

``--only`` prints those sections, and writes nothing.
"""

from __future__ import annotations

import argparse
import datetime
import os
from collections.abc import Iterator
from pathlib import Path

from bench import kernels, loading, machine, networks, roundtrip
from bench.table import paragraph

ROOT = Path(__file__).parents[1]
SECTIONS = ("networks", "loading", "kernels", "roundtrip")
HEAD = (
    "# Performance",
    *paragraph(
        "Written by `make bench`; figures move with the machine, and ratios of one run are what counts. *ratio*: the",
        "median of int8d over that of the fastest peer, in the same run: smaller is better, and the targets are upper",
        "bounds.",
    ),
    *paragraph(
        "All peers run the very same quantized network, with the same weights and scales. The quantizers of OpenVINO",
        "and of torch leave out the quantization between a convolution and the addition or function that follows:",
        "torch gets the network in that form, OpenVINO in the faster of both. They run in turns of 50 ms, warm, each a",
        "process of its own that is pinned to as many cores as it has threads, and stopped while it is not its turn.",
        "[`agent/peers/`](../agent/peers) is all there is to it.",
    ),
)


def main() -> None:
    """Measures, writes, prints."""
    parser = argparse.ArgumentParser(description="Writes docs/performance.md.")
    parser.add_argument("--only", default="", metavar="SECTIONS", help=f"of {', '.join(SECTIONS)}")
    only = parser.parse_args().only
    os.chdir(ROOT)
    about = machine.describe()
    chosen = [s for s in SECTIONS if s in only.split(",")] if only else SECTIONS
    # The networks take longest: what fails elsewhere should fail before.
    sections = {name: list(_section(name)) for name in sorted(chosen, key=lambda name: name == "networks")}
    body = "\n".join(line for name in chosen for line in sections[name]) + "\n"
    if only:
        print(body)
        return
    lines = [*HEAD, "", f"{datetime.date.today()}:", "", *about]
    text = "\n".join(lines) + "\n" + body
    (ROOT / "docs" / "performance.md").write_text(text)
    print(text)


def _section(name: str) -> Iterator[str]:
    if name == "networks":
        yield from networks.report(networks.measure())
    elif name == "loading":
        yield from loading.report({n: loading.measure(networks.path(n), 2) for n in networks.TARGETS})
    elif name == "kernels":
        yield from kernels.report(kernels.measure(ROOT))
    else:
        yield from roundtrip.report(roundtrip.measure(2000, 10))


if __name__ == "__main__":
    main()
