"""Writes docs/performance.md: what ``make bench`` measures, with the machine, the versions and the date."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from pathlib import Path

from agent.commands.bench import measure
from bench.roundtrip import measure as roundtrip

ROOT = Path(__file__).parents[1]
MODELS = ("digits", "resnet18")


def main() -> None:
    """Measures, writes, prints."""
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("int8d", "numpy", "paho-mqtt"))
    lines = [
        "# Performance",
        "",
        "Written by `make bench`; figures move with the machine, and ratios of one run are what counts.",
        "",
        f"{datetime.date.today()}, {_cpu()}, Python {platform.python_version()}, {versions}.",
        "",
        "## Models",
        "",
        "`int8d bench MODEL --threads N`: batch 1, warm, milliseconds. ResNet18 has seeded weights.",
        "",
        "| model | threads | kernels | min | p50 | p95 | GMAC/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in MODELS:
        for threads in (1, 2):
            r = measure(str(ROOT / "models" / "zoo" / f"{name}.int8.safetensors"), threads, "auto", 3.0)
            lines.append(f"| {name} | {threads} | {r['isa']} | {r['min_ms']:.3f} | {r['p50_ms']:.3f} | "
                         f"{r['p95_ms']:.3f} | {r['gmac_per_s']:.1f} |")  # fmt: skip
    r = roundtrip(1000)
    lines += [
        "",
        "## A message there and back",
        "",
        "`python -m bench.roundtrip`: one message at a time through mosquitto on loopback, QoS 1, MQTT 5; the agent",
        "decodes a PNG, runs the digits model and replies; the echo is a bare paho process. Interleaved, microseconds.",
        "",
        "| | p50 | p99 |",
        "|---|---|---|",
        f"| bare echo | {r['echo']['p50_us']} | {r['echo']['p99_us']} |",
        f"| int8d | {r['agent']['p50_us']} | {r['agent']['p99_us']} |",
        "",
        f"Ratio of the medians {r['ratio_p50']}; the kernels take {r['p50_kernel_us']} us of it. "
        f"The daemon was ready {r['ready_s']:.2f} s after its start and held {r['resident_mb']:.0f} MB.",
        "",
    ]
    text = "\n".join(lines)
    (ROOT / "docs" / "performance.md").write_text(text)
    print(text)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
