"""``int8d-make serve``: the repository over MQTT."""

from __future__ import annotations

import argparse
from pathlib import Path

from agent.commands import connection

EPILOG = """Over HTTPS, any web server of static files serves a repository's folder; this is for devices that reach the
broker alone, with transport = "mqtt" in their int8d.toml. int8d acl --repository NAME=TOPIC writes what the broker must
allow."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--mqtt", action="store_true", help="over a broker; the only way that is needed here")
    parser.add_argument("--repo", type=Path, required=True, metavar="DIR", help="the repository's folder")
    parser.add_argument("--topic", default="int8d/repository", help="updates.repository of the devices "
                        "(default: int8d/repository)")  # fmt: skip
    parser.add_argument("--max-bytes-per-s", type=int, default=0, metavar="N",
                        help="to all devices together (default: no limit)")  # fmt: skip
    parser.add_argument("--max-piece", type=int, metavar="N", help="bytes of a message's piece of a file, at most")
    connection.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    import signal
    import threading

    from agent.errors import ConfigError
    from agent.logs import to_stdout
    from agent.repository.pieces import LEAST, MOST, is_repository
    from models.repository.folder import Folder
    from models.repository.serve import Server

    if not args.mqtt:
        raise ConfigError(f"give --mqtt; for devices with HTTPS, let any web server of static files serve {args.repo}")
    if not is_repository(args.topic):
        raise ConfigError(f"--topic '{args.topic}' is not a topic: at most 200 characters, no + # $, no / at its ends")
    piece = MOST if args.max_piece is None else args.max_piece
    if not LEAST <= piece <= MOST:
        raise ConfigError(f"--max-piece must lie in {LEAST}..{MOST}")
    if args.max_bytes_per_s < 0:
        raise ConfigError("--max-bytes-per-s must be 0 or more")
    to_stdout("info")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    Server(Folder(args.repo), connection.broker(args), args.topic, piece, args.max_bytes_per_s).run(stop)
    return 0
