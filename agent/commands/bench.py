"""``int8d bench``: how fast a model runs on this box."""

from __future__ import annotations

import argparse
import time
from typing import Any

import msgspec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", choices=["auto", "native", "torch"], default="auto")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to measure (default: 2)")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    result = measure(args.model, args.threads, args.backend, args.seconds)
    if args.json:
        print(msgspec.json.encode(result).decode())
    else:
        print(
            f"{result['model']} on {result['backend']} ({result['isa']}), {result['threads']} threads, "
            f"{result['runs']} runs: min {result['min_ms']:.3f} ms, p50 {result['p50_ms']:.3f} ms, "
            f"p95 {result['p95_ms']:.3f} ms, {result['gmac_per_s']:.1f} GMAC/s at the median"
        )
    return 0


def measure(path: str, threads: int, backend: Any, seconds: float) -> dict[str, Any]:
    """Times ``Engine.run`` on seeded noise, warm. Milliseconds."""
    import numpy as np

    from agent.engine import load

    engine = load(path, threads, backend)
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {}
    for info in engine.inputs.values():
        noise = rng.integers(0, 256, info.shape).astype(np.uint8)
        inputs[info.name] = {"u8": noise, "s8": noise.view(np.int8), "f32": noise.astype(np.float32)}[info.dtype]
    warm = time.perf_counter() + min(0.5, seconds / 4)
    while time.perf_counter() < warm:
        engine.run(inputs)
    times: list[float] = []
    until = time.perf_counter() + seconds
    while not times or time.perf_counter() < until:
        start = time.perf_counter()
        engine.run(inputs)
        times.append(time.perf_counter() - start)
    times.sort()
    p50 = times[len(times) // 2]
    macs = sum(s.macs for s in engine.steps())
    return {
        "model": engine.header.name,
        "backend": engine.backend,
        "isa": engine.isa,
        "threads": threads,
        "runs": len(times),
        "min_ms": times[0] * 1e3,
        "p50_ms": p50 * 1e3,
        "p95_ms": times[len(times) * 95 // 100] * 1e3,
        "macs": macs,
        "gmac_per_s": macs / p50 / 1e9,
    }
