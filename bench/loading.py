"""From nothing to the first result, each time in a fresh process.

python -m bench.loading MODEL [--threads 2]     # one process: JSON on stdout
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from bench.table import paragraph, table

TARGETS_MS = {"resnet18": 150}


def once(model: str, threads: int) -> dict[str, float]:
    """Milliseconds: importing ``agent``, loading, and the first run."""
    start = time.perf_counter()
    from agent import load

    imported = time.perf_counter()
    engine = load(model, threads)
    loaded = time.perf_counter()
    import numpy as np

    kinds = {"u8": np.uint8, "s8": np.int8, "f32": np.float32}
    inputs = {i.name: np.zeros(i.shape, kinds[i.dtype]) for i in engine.inputs.values()}
    begun = time.perf_counter()
    engine.run(inputs)
    ran = time.perf_counter()
    stages = {"import_ms": imported - start, "load_ms": loaded - imported, "run_ms": ran - begun}
    return {name: 1e3 * seconds for name, seconds in stages.items()}


def measure(model: str, threads: int, times: int = 7) -> dict[str, float]:
    """Medians of several processes; one before them warms the page cache, and lets a choice be made and remembered."""
    command = [sys.executable, "-m", "bench.loading", model, "--threads", str(threads)]
    taken = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(times + 1)]
    return {stage: sorted(t[stage] for t in taken[1:])[times // 2] for stage in taken[0]}


def report(measured: dict[str, dict[str, float]]) -> Iterator[str]:
    """The document's section. measured: by network."""
    yield from ("", "## Loading")
    yield from paragraph(
        "`python -m bench.loading models/zoo/NETWORK.int8.safetensors --threads 2`: milliseconds, medians of fresh",
        "processes with the file in the page cache.",
    )
    yield ""
    rows: list[Sequence[object]] = []
    for network, m in measured.items():
        target = f"{TARGETS_MS[network]}" if network in TARGETS_MS else "–"
        rows.append([network, f"{m['load_ms']:.0f}", f"{m['run_ms']:.1f}", f"{m['load_ms'] + m['run_ms']:.0f}", target,
                     f"{m['import_ms']:.0f}"])  # fmt: skip
    yield from table(["network", "load", "first run", "load to first result", "at most", "import of `agent`"], rows)


def main() -> None:
    """One measurement in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    print(json.dumps(once(args.model, args.threads)))


if __name__ == "__main__":
    main()
