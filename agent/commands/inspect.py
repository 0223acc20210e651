"""``int8d inspect``: what is in a model file, and how each operator runs on this box."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", choices=["auto", "native", "torch"], default="auto")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    document = describe(args.model, args.threads, args.backend)
    print(msgspec.json.encode(document).decode() if args.json else as_text(document))
    return 0


def describe(path: str, threads: int, backend: Any = "auto") -> dict[str, Any]:
    """All that the command prints, as a JSON document."""
    from agent.engine import load
    from agent.modelfile import read
    from agent.validate import node_outputs, operator_name

    model = read(path)
    engine = load(model, threads, backend)
    graph = model.header.graph
    tensors = {t.name: t for t in graph.tensors}
    nodes = {n.name: n for n in graph.nodes}
    steps: list[dict[str, Any]] = [
        {
            "node": step.name,
            "operator": operator_name(nodes[step.name]),
            "shape": list(tensors[node_outputs(nodes[step.name])[0]].shape),
            "backend": step.backend,
            "kernel": step.kernel,
            "macs": step.macs,
        }
        for step in engine.steps()
    ]
    native = sum(s["backend"] == "native" for s in steps)
    return {
        "name": model.header.name,
        "version": model.header.version,
        "inputs": [msgspec.to_builtins(tensors[n]) for n in graph.inputs],
        "outputs": [msgspec.to_builtins(tensors[n]) for n in graph.outputs],
        "preprocess": msgspec.to_builtins(model.header.preprocess),
        "postprocess": msgspec.to_builtins(model.header.postprocess),
        "labels": len(model.header.labels),
        "golden": len(model.golden),
        "provenance": model.header.provenance,
        "backend": engine.backend,
        "isa": engine.isa,
        "threads": engine.threads,
        "native_operators": f"{native}/{len(steps)}",
        "macs": sum(int(s["macs"]) for s in steps),
        "weight_bytes": engine.weight_bytes,
        "arena_bytes": engine.arena_bytes,
        "operators": steps,
    }


def as_text(d: dict[str, Any]) -> str:
    """The document for people."""
    lines = [f"{d['name']} version {d['version']}, {d['labels']} labels, {d['golden']} golden pairs"]
    for side in ("inputs", "outputs"):
        for t in d[side]:
            quantization = "" if t["dtype"] == "f32" else f", scale {t['scale']:.6g}, zero point {t['zero_point']}"
            lines.append(f"{side[:-1]:8}{t['name']}: {t['dtype']} {t['shape']}{quantization}")
    lines += [f"{k}: {v}" for k, v in d["provenance"].items()]
    lines.append(
        f"backend {d['backend']} ({d['isa']}), {d['native_operators']} operators native, {d['macs'] / 1e6:.2f} MMAC, "
        f"weights {d['weight_bytes']:,} bytes, arena {d['arena_bytes']:,} bytes"
    )
    width = max((len(s["node"]) for s in d["operators"]), default=0)
    for s in d["operators"]:
        shape = "x".join(map(str, s["shape"]))
        lines.append(f"  {s['node']:{width}}  {s['operator']:12} {shape:16} {s['kernel']}")
    return "\n".join(lines)
