"""``int8d send``: files to an agent, each sent until it is answered."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING

from agent.commands import connection, files
from agent.commands.infer import summary
from agent.errors import Int8dError

if TYPE_CHECKING:
    from agent.client import Reply
    from agent.wire.sealed import Sender


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", help="pictures, .npy files, raw tensors (.bin) or requests (.json)")
    parser.add_argument("--model", required=True, help="the model's name at the agent")
    parser.add_argument("--device", required=True, help="the agent's device name")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for each reply (default: 30)")
    parser.add_argument("--retry", type=float, default=2.0, help="seconds after which to send again (default: 2)")
    parser.add_argument("--window", type=int, default=1, metavar="N", help="messages under way at a time (default: 1)")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="send all files N times (default: 1)")
    parser.add_argument("--spool", metavar="FILE",
                        help="keep unanswered messages here; what an earlier run left is sent first")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a reply a line")
    parser.add_argument("--client-id", default="", metavar="NAME",
                        help="default: a new one; with int8d acl, this user's name at the broker")  # fmt: skip
    parser.add_argument("--to", metavar="PUBLIC_KEY", help="encrypt for the device with this key (int8d key)")
    parser.add_argument("--identity", metavar="FILE", help="with --to: our own private key; default: a new one")
    connection.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from agent.client import Client

    if args.window < 1 or args.repeat < 1:
        raise Int8dError("--window and --repeat must be 1 or more")
    if not args.files and not args.spool:
        raise Int8dError("name files to send, or a --spool whose messages are to be sent")
    sealing = _sealing(args.to, args.identity)
    report = _Report(args.json)
    waiting: deque[tuple[str, Future[Reply]]] = deque()
    with Client(
        connection.broker(args),
        args.device,
        args.prefix,
        args.client_id,
        max_in_flight=args.window,
        retry_refused=True,
        sealing=sealing,
        spool=args.spool,
    ) as client:
        for future in client.resume(args.timeout, args.retry):
            report.tell("(left by an earlier run)", future)
        for path in itertools.chain.from_iterable(itertools.repeat(args.files, args.repeat)):
            while waiting and (len(waiting) >= args.window or waiting[0][1].done()):
                report.tell(*waiting.popleft())
            try:
                payload, content_type = files.read(path)
                waiting.append((path, client.submit(args.model, payload, content_type, args.timeout, args.retry)))
            except Int8dError as e:
                report.failed(str(e))
        while waiting:
            report.tell(*waiting.popleft())
    return 2 if report.failures else 0


def _sealing(to: str | None, identity: str | None) -> Sender | None:
    if to is None:
        if identity is not None:
            raise Int8dError("--identity needs --to PUBLIC_KEY, the device's")
        return None
    from agent.wire import keys
    from agent.wire.hpke import PrivateKey
    from agent.wire.sealed import Sender

    own = PrivateKey.generate() if identity is None else keys.load(identity)
    return Sender(own, keys.parse_public(to))


class _Report:
    """Prints what comes of each file, in their order, and counts failures."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self.failures = 0

    def tell(self, path: str, future: Future[Reply]) -> None:
        from agent.client import Refused

        try:
            reply = future.result()
        except Refused as e:
            if self._json:
                print(e.reply.decode())
                self.failures += 1
            else:
                self.failed(f"{path}: {e}")
        except Int8dError as e:
            self.failed(f"{path}: {e}")
        else:
            took = f"{reply.round_trip_ns / 1e6:.2f} ms there and back"
            print(reply.payload.decode() if self._json else f"{path}: {summary(reply.document)}, {took}")

    def failed(self, why: str) -> None:
        self.failures += 1
        print(f"int8d: {why}", file=sys.stderr)
