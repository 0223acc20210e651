"""``int8d bench``: how fast a model runs on this box, alone or beside its peers."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from agent.commands import tuning
from agent.engine import Tuning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model file")
    parser.add_argument("--threads", default="1", help="one number, or several with commas (default: 1)")
    parser.add_argument("--backend", choices=["auto", "native", "torch"], default="auto")
    parser.add_argument("--vs", default="", metavar="PEERS", help="onnxruntime, openvino: the same network, in turns")
    parser.add_argument("--layers", action="store_true", help="the time of each layer")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to measure (default: 2)")
    parser.add_argument("--tune", action="store_true", help="time the kernel choices first, and remember the best")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    tuning.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from agent.errors import InputError

    try:
        threads = [int(t) for t in args.threads.split(",")]
    except ValueError as e:
        raise InputError(f"--threads takes numbers, not '{args.threads}'") from e
    known = tuning.remembered(args)
    for count in threads:
        if args.tune:
            tune(args.model, count, args.backend, known.folder)
        if args.vs:
            from agent.modelfile import read
            from agent.peers.judge import compare

            result = compare(read(args.model), args.vs.split(","), count, args.seconds, known)
            text = compared(result)
        else:
            result = measure(args.model, count, args.backend, args.seconds, known)
            text = (
                f"{result['model']} on {result['backend']} ({result['isa']}), {count} threads, {result['runs']} runs: "
                f"min {result['min_ms']:.3f} ms, p50 {result['p50_ms']:.3f} ms, p95 {result['p95_ms']:.3f} ms, "
                f"{result['gmac_per_s']:.1f} GMAC/s at the median"
            )
        if args.layers:
            result["layers"] = layers(args.model, count, args.backend, known)
            text += "\n" + "\n".join(
                f"  {r['us']:9.1f} us  {r['gmac_per_s']:6.1f} GMAC/s  {r['name']:24} {r['kernel']}"
                for r in result["layers"]
            )
        print(msgspec.json.encode(result).decode() if args.json else text, flush=True)
    return 0


def tune(path: str, threads: int, backend: Any, folder: Path) -> None:
    """Tunes a model, whatever is remembered, and says on stderr what came of it."""
    from agent.engine import load
    from agent.engine.tuner import BUDGET_S

    found = load(path, threads, backend, tuning=Tuning(folder, BUDGET_S, again=True)).tuned
    if found is not None:
        print(f"tuned for {threads} threads: {found.answer}", file=sys.stderr)


def compared(result: dict[str, Any]) -> str:
    """A comparison for people."""
    lines = [
        f"{result['model']}, {result['threads']} threads, {result['isa']}: {result['ratio']:.2f} of the best peer's "
        f"median, {result['gmac_per_s']:.1f} GMAC/s"
    ]
    for name, figures in result["contenders"].items():
        agreement = result["agreement"].get(name)
        same = f"   {100 * agreement['equal']:.1f} % of outputs equal ours" if agreement else ""
        label = f"{name} {result['versions'].get(name, '')}".strip()
        lines.append(
            f"  {label:22} min {figures['min_ms']:8.3f}   p50 {figures['p50_ms']:8.3f}   "
            f"p95 {figures['p95_ms']:8.3f} ms{same}"
        )
    return "\n".join(lines)


def layers(
    path: str, threads: int, backend: Any, tuning: Tuning | None = None, runs: int = 200
) -> list[dict[str, Any]]:
    """The median microseconds of each node that takes any, in order."""
    from agent.engine import load, noise

    engine = load(path, threads, backend, spin_us=2000, tuning=tuning)
    inputs = noise(engine)
    taken = [engine.profile(inputs) for _ in range(runs)]
    rows = []
    for step in engine.steps():
        median = sorted(t[step.name] for t in taken)[runs // 2]
        if median:
            rows.append({"name": step.name, "kernel": step.kernel, "us": median / 1e3, "macs": step.macs,
                         "gmac_per_s": step.macs / median})  # fmt: skip
    return rows


def measure(path: str, threads: int, backend: Any, seconds: float, tuning: Tuning | None = None) -> dict[str, Any]:
    """Times ``Engine.run`` on seeded noise, warm. Milliseconds."""
    from agent.engine import load, noise

    engine = load(path, threads, backend, tuning=tuning)
    inputs = noise(engine)
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
