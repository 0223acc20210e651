"""``int8d bench``: how fast a model runs on this box, alone or beside its peers."""

from __future__ import annotations

import argparse
import sys
import textwrap
from typing import Any

import msgspec

from agent.commands import tuning
from agent.commands.names import abridged
from agent.engine import Tuning

_TUNED_BATCH = 16  # the daemon's own default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model file")
    parser.add_argument("--threads", default="1", help="one number, or several with commas (default: 1)")
    parser.add_argument("--backend", choices=["auto", "native", "torch"], default="auto")
    peers = "openvino, onnxruntime, litert, torch, onnxruntime-float"
    parser.add_argument("--vs", default="", metavar="PEERS", help=f"{peers}: the same network, in turns")
    parser.add_argument("--isa", help="the most that int8d, and each peer as far as it can be limited, may use")
    parser.add_argument("--layers", action="store_true", help="the time of each layer")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to measure each contender (default: 2)")
    parser.add_argument("--tune", action="store_true", help="time kernels and batches first, and remember the best")
    parser.add_argument("--sweep", action="store_true", help="which replicas, threads and batches are best here")
    parser.add_argument("--max-batch", type=int, default=16, help="the largest batch that --sweep tries (default: 16)")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    tuning.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from agent.errors import InputError

    try:
        threads = [int(t) for t in args.threads.split(",")]
    except ValueError as e:
        raise InputError(f"--threads takes numbers, not '{args.threads}'") from e
    failed = False
    known = tuning.remembered(args)
    if args.sweep:
        sweep(args, known)
        return 0
    for count in threads:
        if args.tune:
            tune(args.model, count, args.backend, args.isa or "auto", known)
        if args.vs:
            from agent.peers.judge import compare

            result = compare(args.model, args.vs.split(","), count, args.seconds, args.isa, known.folder)
            text = compared(result)
            failed = failed or bool(result["failed"])
        else:
            result = measure(args.model, count, args.backend, args.seconds, args.isa or "auto", known)
            text = (
                f"{result['model']} on {result['backend']} ({result['isa']}), {count} threads, {result['runs']} runs: "
                f"min {result['min_ms']:.3f} ms, p50 {result['p50_ms']:.3f} ms, p95 {result['p95_ms']:.3f} ms, "
                f"{result['gmac_per_s']:.1f} GMAC/s at the median"
            )
        if args.layers:
            result["layers"] = layers(args.model, count, args.backend, args.isa or "auto", known)
            text += "\n" + "\n".join(
                f"  {r['us']:9.1f} us  {r['gmac_per_s']:6.1f} GMAC/s  {abridged(r['name']):24} {r['kernel']}"
                for r in result["layers"]
            )
        print(msgspec.json.encode(result).decode() if args.json else text, flush=True)
    return 2 if failed else 0


def sweep(args: argparse.Namespace, known: Tuning) -> None:
    """A line a combination, as it is measured; then the best, as int8d.toml takes it."""
    from agent import sweep as s

    found = []
    if not args.json:
        print(f"{'replicas':>8} {'threads':>7} {'batch':>5}  {'cores':9} {'a second':>10} {'p50 ms':>9} {'p99 ms':>9}")
    for m in s.sweep(args.model, args.seconds, args.max_batch, args.backend, known):
        found.append(m)
        where = "pinned" if m.setting.cores else "any"
        print(
            msgspec.json.encode(m).decode() if args.json else f"{m.setting.replicas:8} {m.setting.threads:7} "
            f"{m.setting.batch:5}  {where:9} {m.per_second:10.1f} {m.p50_ms:9.3f} {m.p99_ms:9.3f}", flush=True
        )  # fmt: skip
    most, soonest = s.best(found), s.soonest(found)
    wanted = [("for the most a second", most), ("for the soonest answer to one request at a time", soonest)]
    if soonest.setting == most.setting and not args.json:  # people need not read it twice; programs find both
        del wanted[1]
    for what, m in wanted:
        if args.json:
            print(msgspec.json.encode({"for": what, "lines": m.setting.lines()}).decode())
        else:
            print("\n".join(["", f"# {what}: {m.per_second:.1f} a second, p50 {m.p50_ms:.3f} ms", *m.setting.lines()]))


def tune(path: str, threads: int, backend: Any, isa: str, known: Tuning) -> None:
    """Tunes a model, whatever is remembered, and says on stderr what came of it."""
    from agent.engine import load, load_batches
    from agent.engine.tuner import BUDGET_S
    from agent.modelfile import read

    tuning, model = Tuning(known.folder, BUDGET_S, again=True), read(path)
    engine = load(model, threads, backend, isa, tuning=tuning)
    if engine.tuned is not None:
        print(f"tuned for {threads} threads: {engine.tuned.answer}", file=sys.stderr)
    times = load_batches(engine, model, _TUNED_BATCH, tuning, isa).times
    if times is not None:
        print(f"batches: {times}", file=sys.stderr)


def compared(result: dict[str, Any]) -> str:
    """A comparison for people, within 100 columns."""
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    limit = f", limited to {result['limit']}" if result["limit"] else ""
    best = f"{result['ratio']:.2f} of {result['best_peer']}'s median" if result["best_peer"] else "no peer to compare"
    peak = ""
    if result["of_peak"]:
        roof = f"{result['peak_gmac_per_s']:.0f} that {result['isa']} reaches in registers"
        peak = f", {100 * result['of_peak']:.0f} % of the {roof}"
    lines = [
        f"{result['model']}, {threads}{limit}: {best}",
        f"  {result['gmac_per_s']:.1f} GMAC/s{peak}",
        f"  {'milliseconds':24}{'min':>9}{'p50':>9}{'p95':>9}{'GMAC/s':>9}{'int8d / it':>12}{'equal':>9}{'off':>13}",
    ]
    for name, row in result["contenders"].items():
        label = f"{name} {row.get('version', '')}".strip()
        line = f"  {label:24}{row['min_ms']:9.3f}{row['p50_ms']:9.3f}{row['p95_ms']:9.3f}{row['gmac_per_s']:9.1f}"
        if name != "int8d":
            line += f"{row['ratio']:12.2f}{100 * row['equal']:7.1f} %{100 * row['difference']:11.2f} %"
        lines.append(line)
    notes = [
        f"{name}: {', '.join(filter(None, (row['ran'], row['limit'])))}" for name, row in result["contenders"].items()
    ]
    notes += [f"{name} did not run: {why}" for name, why in result["failed"].items()]
    lines += [textwrap.fill(note, 100, initial_indent="  ", subsequent_indent="    ") for note in notes]
    return "\n".join(lines)


def layers(
    path: str, threads: int, backend: Any, isa: str = "auto", tuning: Tuning | None = None, runs: int = 200
) -> list[dict[str, Any]]:
    """The median microseconds of each node that takes any, in order."""
    from agent.engine import load, noise

    engine = load(path, threads, backend, isa, spin_us=2000, tuning=tuning)
    inputs = noise(engine)
    taken = [engine.profile(inputs) for _ in range(runs)]
    rows = []
    for step in engine.steps():
        median = sorted(t[step.name] for t in taken)[runs // 2]
        if median:
            rows.append({"name": step.name, "kernel": step.kernel, "us": median / 1e3, "macs": step.macs,
                         "gmac_per_s": step.macs / median})  # fmt: skip
    return rows


def measure(
    path: str, threads: int, backend: Any, seconds: float, isa: str = "auto", tuning: Tuning | None = None
) -> dict[str, Any]:
    """Times ``Engine.run`` on seeded noise, warm. Milliseconds."""
    from agent.engine import load, noise
    from agent.peers.timing import figures, timed_slice

    engine = load(path, threads, backend, isa, tuning=tuning)
    inputs = noise(engine)
    timed_slice(lambda: engine.run(inputs), min(0.5, seconds / 4))  # warm
    times = timed_slice(lambda: engine.run(inputs), seconds)
    macs = sum(s.macs for s in engine.steps())
    return {
        "model": engine.header.name,
        "backend": engine.backend,
        "isa": engine.isa,
        "threads": threads,
        "macs": macs,
    } | figures(times, macs)
