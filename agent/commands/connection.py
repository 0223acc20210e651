"""The options of commands that talk to a broker."""

from __future__ import annotations

import argparse
import os

from agent.config import Broker, Tls
from agent.config.secrets import secret_file
from agent.errors import ConfigError
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
