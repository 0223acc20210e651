"""``int8d inspect``: what is in a model file, and how each operator runs on this box."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Any

import msgspec

from agent.commands import tuning
from agent.commands.names import abridged
from agent.engine import Engine, Tuning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", choices=["auto", "native", "torch"], default="auto")
    parser.add_argument("--json", action="store_true")
    tuning.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    document = describe(args.model, args.threads, args.backend, tuning.remembered(args))
    print(msgspec.json.encode(document).decode() if args.json else as_text(document))
    return 0


def describe(path: str, threads: int, backend: Any = "auto", tuning: Tuning | None = None) -> dict[str, Any]:
    """All that the command prints, as a JSON document."""
    from agent import coverage
    from agent.engine import load
    from agent.modelfile import read
    from agent.validate import node_outputs, operator_name

    model = read(path)
    engine = load(model, threads, backend, tuning=tuning)
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
            "split": step.split,
            "macs": coverage.macs(nodes[step.name], tensors, model.constants),
            "tuner": _figures(engine, step.name),
        }
        for step in engine.steps()
    ]
    native = sum(s["backend"] == "native" for s in steps)
    share = coverage.share(graph, model.constants)
    return {
        "name": model.header.name,
        "version": model.header.version,
        "inputs": [msgspec.to_builtins(tensors[n]) for n in graph.inputs],
        "outputs": [msgspec.to_builtins(tensors[n]) for n in graph.outputs],
        "preprocess": msgspec.to_builtins(model.header.preprocess),
        "postprocess": msgspec.to_builtins(model.header.postprocess),
        "labels": len(model.header.labels),
        "golden": len(model.golden),
        "statistics": model.statistics.samples if model.statistics is not None else 0,
        "provenance": model.header.provenance,
        "backend": engine.backend,
        "isa": engine.isa,
        "threads": engine.threads,
        "native_operators": f"{native}/{len(steps)}",
        "macs": share.macs,
        "native_share": {
            "operators": share.of_operators,
            "macs": share.of_macs,
            "fallbacks": [asdict(f) for f in share.fallbacks],
        },
        "weight_bytes": engine.weight_bytes,
        "arena_bytes": engine.arena_bytes,
        "tuner": _answer(engine, tuning),
        "operators": steps,
    }


def _figures(engine: Engine, operator: str) -> dict[str, Any] | None:
    """What the tuner measured for an operator, microseconds, and whether it has another choice than the default."""
    times = engine.tuned.answer.operators.get(operator) if engine.tuned else None
    if engine.tuned is None or times is None:
        return None
    changed = operator in engine.tuned.answer.choices
    return {"changed": changed, "default_us": times.default_us, "chosen_us": times.chosen_us}


def _answer(engine: Engine, tuning: Tuning | None) -> dict[str, Any] | None:
    """The answer that the tuner gave for the whole model; times are of a run, 0 where the default is the best."""
    if engine.tuned is None or tuning is None:
        return None
    answer = engine.tuned.answer
    return {
        "file": str(tuning.folder / engine.tuned.key.file),
        "age_s": round(time.time() - engine.tuned.made),
        "changed": len(answer.choices),
        "default_us": answer.default_us,
        "tuned_us": answer.tuned_us,
        "complete": answer.complete,
    }


def as_text(d: dict[str, Any]) -> str:
    """The document for people."""
    lines = [f"{d['name']} version {d['version']}, {d['labels']} labels, {d['golden']} golden pairs"]
    lines[0] += f", statistics of {d['statistics']} inputs" if d["statistics"] else ", no statistics: drift is not seen"
    for side in ("inputs", "outputs"):
        for t in d[side]:
            quantization = (
                "" if t["dtype"] in ("f32", "s32") else f", scale {t['scale']:.6g}, zero point {t['zero_point']}"
            )
            lines.append(f"{side[:-1]:8}{t['name']}: {t['dtype']} {t['shape']}{quantization}")
    lines += [f"{k}: {v}" for k, v in d["provenance"].items()]
    lines.append(
        f"backend {d['backend']} ({d['isa']}), {d['native_operators']} operators native, {d['macs'] / 1e6:.2f} MMAC, "
        f"weights {d['weight_bytes']:,} bytes, arena {d['arena_bytes']:,} bytes"
    )
    lines.append(_share_line(d["native_share"]))
    lines.append(_tuner_line(d["tuner"]))
    width = max((len(abridged(s["node"])) for s in d["operators"]), default=0)
    for s in d["operators"]:
        shape = "x".join(map(str, s["shape"]))
        split = f", by {s['split']}" if s["split"] else ""
        lines.append(
            f"  {abridged(s['node']):{width}}  {s['operator']:12} {shape:16} {s['kernel']}{split}{_timed(s['tuner'])}"
        )
    return "\n".join(lines)


def _share_line(share: dict[str, Any]) -> str:
    fallen = ", ".join(f"{f['count']} {f['operator']} ({f['macs'] / 1e6:.2f} MMAC)" for f in share["fallbacks"])
    native = f"native share: {100 * share['operators']:.2f} % of operators, {100 * share['macs']:.2f} % of MACs"
    return f"{native}; in torch: {fallen}" if fallen else native


def _tuner_line(answer: dict[str, Any] | None) -> str:
    if answer is None:
        return (
            "not tuned on this box for this number of threads: int8d bench --tune does it, and int8d run at its start"
        )
    days, seconds = divmod(answer["age_s"], 86_400)
    age = f"{days} days" if days else f"{seconds // 3600} h {seconds // 60 % 60} min"
    gain = f", {answer['default_us']:.0f} -> {answer['tuned_us']:.0f} us a run" if answer["changed"] else ""
    part = "" if answer["complete"] else ", not all candidates were tried"
    return f"tuned {age} ago: {answer['changed']} operators changed{gain}{part} ({answer['file']})"


def _timed(times: dict[str, Any] | None) -> str:
    if times is None:
        return ""
    chosen = f" -> {times['chosen_us']:.1f}" if times["changed"] else ""
    return f"  [{times['default_us']:.1f}{chosen} us]"
