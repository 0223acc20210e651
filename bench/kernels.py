"""The kernel benches (csrc/kernels/*/bench.cpp) as tables: a row a layer's shape, a column a kernel."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.table import paragraph, percent, table

PROGRAM = Path("build/bench/int8d_kernel_bench")
TARGET = 0.85
ARGUMENTS = ("--benchmark_format=json", "--benchmark_min_time=0.1")


def measure(root: Path) -> list[dict[str, Any]]:
    """Google Benchmark's records, on one core. Raises ``FileNotFoundError`` where ``make bench-native`` was not run."""
    core = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [root / PROGRAM, *ARGUMENTS], check=True, capture_output=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )  # fmt: skip
    records: list[dict[str, Any]] = json.loads(done.stdout)["benchmarks"]
    return records


def report(records: list[dict[str, Any]]) -> Iterator[str]:
    """The document's section."""
    yield from ("", "## Kernels")
    yield from paragraph(
        f"`{PROGRAM} {' '.join(ARGUMENTS)}`, one core: GMAC/s and the share of the peak of the kernel's instruction",
        f"set (goal for dense layers: {percent(TARGET)}). A layer is *kernel s stride, map, channels in and out*.",
        "Winograd's GMAC are those of the direct method, so that its share can pass 100 %. Products of maps (*mul*:",
        "map, channels), strided copies (*move*), interpolation (*resize*: map, larger map, channels) and reading",
        "memory (*read*: kilobytes) are counted in bytes.",
    )
    families: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        families.setdefault(record["name"].split("_")[0], []).append(record)
    for family, members in families.items():
        yield from ("", f"### {family}", "")
        yield from _family(members)


def _family(records: list[dict[str, Any]]) -> Iterator[str]:
    kernels: dict[str, None] = {}
    cells: dict[str, dict[str, str]] = {}
    for record in records:
        kernel, _, layer = record["name"].partition("/")
        kernels[kernel] = None
        if record.get("error_occurred"):
            cells.setdefault(layer, {})[kernel] = record["error_message"]
        else:
            cells.setdefault(layer, {})[kernel] = _speed(record)
    rows = [[layer.replace("_", " "), *(row.get(k, "") for k in kernels)] for layer, row in cells.items()]
    yield from table(["layer", *(f"`{k}`" for k in kernels)], rows)


def _speed(record: dict[str, Any]) -> str:
    if "GMAC/s" not in record:
        return f"{record['bytes_per_second'] / 1e9:.1f} GB/s"
    share = f" ({percent(record['of_peak'])})" if "of_peak" in record else ""
    return f"{record['GMAC/s']:.0f}{share}"
