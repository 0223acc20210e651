"""``int8d infer``: files through a model, without a broker; the same code as the daemon's."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import msgspec

from agent.commands import files, tuning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model file")
    parser.add_argument("files", nargs="+", help="pictures, .npy files, raw tensors (.bin) or requests (.json)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", choices=["auto", "native", "torch"], default="auto")
    parser.add_argument("--json", action="store_true", help="print a reply a line")
    tuning.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from agent.engine import load
    from agent.errors import InputError
    from agent.predict import Predictor

    predictor = Predictor(load(args.model, args.threads, args.backend, tuning=tuning.remembered(args)))
    failed = 0
    for path in args.files:
        try:
            payload, content_type = files.read(path)
            reply = predictor.predict(payload, content_type, request_id=path)
        except InputError as e:
            print(f"int8d: {path}: {e}", file=sys.stderr)
            failed += 1
            continue
        print(reply.decode() if args.json else f"{path}: {summary(msgspec.json.decode(reply))}")
    return 2 if failed else 0


def summary(reply: dict[str, Any]) -> str:
    """A reply on a line: the classes, or the outputs' shapes; and how long it took."""
    if "error" in reply:
        return f"{reply['error']['code']}: {reply['error']['message']}"
    took = f"{reply['parameters'].get('compute_infer_us', 0)} us"
    if reply.get("classes"):
        best = ", ".join(f"{c['label']} {100 * c['probability']:.1f} %" for c in reply["classes"][:3])
        return f"{best} ({took})"
    return ", ".join(f"{o['name']} {o['datatype']} {o['shape']}" for o in reply["outputs"]) + f" ({took})"
