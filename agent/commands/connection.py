"""The options of commands that talk to a broker."""

from __future__ import annotations

import argparse
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agent.config import Broker, Tls
from agent.config.secrets import secret_file
from agent.errors import ConfigError, Int8dError
from agent.mqtt.tls import context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--protocol", choices=["auto", "5", "3.1.1"], default="auto")
    parser.add_argument("--username")
    parser.add_argument("--password-file", metavar="FILE", help="or the variable INT8D_PASSWORD")
    parser.add_argument("--ca", metavar="FILE", help="use TLS, and trust this authority")
    parser.add_argument("--cert", metavar="FILE", help="this client's certificate")
    parser.add_argument("--key", metavar="FILE", help="and its key")
    parser.add_argument("--prefix", default="int8d", help="of all topics (default: int8d)")


def broker(args: argparse.Namespace) -> Broker:
    """The connection that the options describe. Raises ``ConfigError`` for files that can't be used."""
    tls = None
    if args.ca or args.cert:
        if (args.cert is None) != (args.key is None):
            raise ConfigError("give --cert and --key, or neither")
        tls = Tls(ca=args.ca, cert=args.cert, key=secret_file(args.key, "--key"))
        context(tls)
    return Broker(
        host=args.host, port=args.port, protocol=args.protocol, username=args.username,
        password=os.environ.get("INT8D_PASSWORD"), password_file=secret_file(args.password_file, "--password-file"),
        tls=tls,
    )  # fmt: skip


@contextmanager
def listening(
    args: argparse.Namespace, name: str, topics: list[tuple[str, int]], receive: Callable[[str, bytes], None]
) -> Iterator[None]:
    """A connection that subscribes; ``receive(topic, payload)`` gets what comes, in a thread of the session's.

    topics: filter and QoS. Raises ``Int8dError`` where there is no connection within 10 seconds.
    """
    from agent.mqtt.messages import Incoming
    from agent.mqtt.session import Session

    def take(message: Incoming) -> None:
        receive(message.topic, message.payload)
        session.done(message)

    session = Session(broker(args), f"int8d-{name}-{uuid.uuid4().hex[:12]}", topics, take, clean=True)
    session.start()
    try:
        if not session.wait_ready(10):
            raise Int8dError(f"no connection to {args.host}:{args.port} ({session.refusal or 'no answer'})")
        yield
    finally:
        session.stop()
