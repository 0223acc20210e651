"""``int8d send``: files to an agent, each sent until it is answered."""

from __future__ import annotations

import argparse
import sys

import msgspec

from agent.commands import connection, files
from agent.commands.infer import summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", help="pictures, .npy files, raw tensors (.bin) or requests (.json)")
    parser.add_argument("--model", required=True, help="the model's name at the agent")
    parser.add_argument("--device", required=True, help="the agent's device name")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for each reply (default: 30)")
    parser.add_argument("--retry", type=float, default=2.0, help="seconds after which to send again (default: 2)")
    parser.add_argument("--json", action="store_true", help="print a reply a line")
    connection.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from agent.mqtt.client import Client

    failed = 0
    with Client(connection.broker(args), args.device, args.prefix) as client:
        for path in args.files:
            payload, content_type = files.read(path)
            reply, took_ns = client.infer(args.model, payload, content_type, args.timeout, args.retry)
            document = msgspec.json.decode(reply)
            failed += "error" in document
            if args.json:
                print(reply.decode())
            else:
                print(f"{path}: {summary(document)}, {took_ns / 1e6:.2f} ms there and back",
                      file=sys.stderr if "error" in document else sys.stdout)  # fmt: skip
    return 2 if failed else 0
