"""``int8d``: the device's command. Each subcommand is a module of ``agent.commands``, imported when it is used."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from agent import __version__
from agent.errors import ConfigError, Int8dError

COMMANDS = {
    "run": "serve models over MQTT, as int8d.toml says",
    "demo": "see it work: an embedded broker, the agent, 40 pictures",
    "infer": "run files through a model, without a broker",
    "inspect": "show what is in a model file, and how each operator runs here",
    "bench": "time a model on this box",
    "send": "send files to an agent over MQTT, until each is answered",
    "watch": "show devices, models and latencies, live",
    "update": "see, check, install or take back models that come over the air",
    "key": "make a key for encrypted messages or models, or show its public half",
    "acl": "write a mosquitto ACL that gives each device and client only its topics",
}
EXIT_USAGE, EXIT_CONFIG, EXIT_INTERRUPTED = 2, 78, 130


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0; 2 for bad input; 78 for bad configuration; 130 when interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="int8d", description="The int8 inference daemon for edge boxes.")
    parser.add_argument("--version", action="version", version=f"int8d {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((a for a in arguments if not a.startswith("-")), None)
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        if name == chosen:
            importlib.import_module(f"agent.commands.{name}").add_arguments(sub)
    args = parser.parse_args(arguments)
    try:
        status: int = importlib.import_module(f"agent.commands.{args.command}").run(args)
        sys.stdout.flush()
        return status
    except ConfigError as e:
        print(f"int8d: {e}", file=sys.stderr)
        return EXIT_CONFIG
    except Int8dError as e:
        print(f"int8d: {e}", file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
