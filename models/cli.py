"""``int8d-make``: the workbench's command, which devices never need. Making models takes torch, publishing doesn't.

Each subcommand is a module of ``models.commands``, imported when it is used.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys

from agent.errors import Int8dError

# command: (module of models.commands, what it is for)
COMMANDS = {
    "build": ("build", "build a model of the zoo"),
    "import": ("import_model", "bring a TFLite, ONNX or torch model"),
    "record": ("record", "record what a model sees and says over usual inputs, for drift on the device"),
    "check": ("check", "hold a model against the source that it was imported from"),
    "keys": ("keys", "make the keys that sign releases"),
    "publish": ("publish", "sign a model as a release that devices install by themselves"),
    "repo": ("repo", "keep a repository of releases: refresh, rotate keys, revoke, show"),
    "rollout": ("rollout", "say which devices take a release, and when"),
    "serve": ("serve", "serve a repository to devices over MQTT"),
}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 with one line on stderr."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="int8d-make", description="Make int8 models for int8d, and publish them to devices."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((a for a in arguments if not a.startswith("-")), None)
    for name, (module, text) in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        if name == chosen:
            importlib.import_module(f"models.commands.{module}").add_arguments(sub)
    args = parser.parse_args(arguments)
    # torchao's GPU libraries that do not load, and its deprecations, say nothing of the model at hand.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        status: int = importlib.import_module(f"models.commands.{COMMANDS[args.command][0]}").run(args)
        return status
    except (Int8dError, OSError) as e:
        print(f"int8d-make: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
