"""``int8d update``: where this box's updates stand, and having them checked, installed or taken back now.

Where the daemon runs, it does what is asked; where not, this process does, and the next start of the daemon goes on.
Root, outside of the unit, looks where the unit keeps its state.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent.errors import ConfigError, Int8dError

if TYPE_CHECKING:
    from agent.config import Config
    from agent.updates.control import Ask
    from agent.updates.status import Status, Version

_UNITS_STATE = Path("/var/lib/int8d")  # StateDirectory= of systemd/int8d.service
ACTIONS = {
    "status": "what serves, and where its update stands",
    "check": "look what the repository has for this box",
    "install": "install what is due here, or a release by number",
    "rollback": "go back to the release before",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in ACTIONS.items():
        sub = actions.add_parser(name, help=text, description=text)
        sub.add_argument(
            "model", nargs="?", help="default: all models" if name == "status" else "default: the only one"
        )
        sub.add_argument("--config", default="int8d.toml", metavar="FILE", help="default: int8d.toml")
        sub.add_argument("--json", action="store_true", help="print JSON")
        if name == "install":
            sub.add_argument("--release", type=int, metavar="N", help="this one, though it is not this box's turn yet")


def run(args: argparse.Namespace) -> int:
    config = _config(args.config)
    if not config.updates.repository:
        raise ConfigError(f"{args.config}: [updates] names no repository; docs/updates.md says how")
    names = [m.name for m in config.model]
    if args.model is not None and args.model not in names:
        raise Int8dError(f"no model '{args.model}'; there are: {', '.join(names)}")
    if args.action == "status":
        found = [s for s in _statuses(config) if args.model in (None, s.model)]
    else:
        if args.model is None and len(names) > 1:
            raise Int8dError(f"name one of the models: {', '.join(names)}")
        from agent.updates.control import Ask

        ask = Ask(args.model or names[0], args.action, getattr(args, "release", None))
        found = [_perform(config, args.config, ask, lambda status: None if args.json else _progress(status))]
    if args.json:
        print(msgspec.json.encode(found).decode())
    else:
        print("\n\n".join(map(_text, found)))
    return 0


def _config(path: str) -> Config:
    """Without its secrets: the daemon has them, and credentials are there for the unit alone."""
    from agent.config import parse

    config = parse(path)
    units = os.geteuid() == 0 and not os.environ.get("STATE_DIRECTORY") and (_UNITS_STATE / config.device).is_dir()
    if config.state_folder or not units:
        return config
    return msgspec.structs.replace(config, state_folder=str(_UNITS_STATE))


def _statuses(config: Config) -> list[Status]:
    """As the daemon tells; where none runs, as the journals do."""
    from agent.disk import Disk
    from agent.updates import control
    from agent.updates.journal import load, status
    from agent.updates.store import Store

    store = Store(config.device_folder / "updates", Disk())
    found = []
    for model in config.model:
        told = control.ask(store.folder, control.Ask(model.name, "status"), lambda status: None)
        found.append(told or status(config.device, model.name, load(store.of(model.name) / "journal.json")[0]))
    return found


def _perform(config: Config, path: str, wanted: Ask, tell: Callable[[Status], None]) -> Status:
    from agent.config import load
    from agent.updates import control, updater

    folder = config.device_folder
    status = control.ask(folder / "updates", wanted, tell)
    if status is not None:
        return status
    if folder.is_dir() and folder.stat().st_uid != os.geteuid():
        raise Int8dError(
            f"int8d does not run here, and {folder} is another user's: systemctl start int8d, or ask as that user"
        )
    print("int8d does not run here: what is installed now serves from its next start", file=sys.stderr)
    updates = updater.of(msgspec.structs.replace(load(path), state_folder=config.state_folder))
    assert wanted.action != "status"
    try:
        return updates.perform(wanted.model, wanted.action, tell, wanted.release)
    finally:
        updates.close()


def _progress(status: Status) -> None:
    done = f" {100 * status.bytes_done // status.bytes} % of {status.bytes:,} bytes" if status.bytes else ""
    print(f"{status.state}{': ' + status.step if status.step else ''}{done}", file=sys.stderr)


def _text(status: Status) -> str:
    lines = [f"{status.model}: {status.state}" + (f" ({status.step})" if status.step else "")]

    def add(name: str, value: str) -> None:
        lines.append(f"  {name:<11}{value}")

    add("serves", _version(status.serving))
    if status.previous is not None and status.committed.release:
        add("before", _version(status.previous))
    if status.available is not None:
        add("available", _version(status.available))
    if status.target is not None:
        add("update", f"{_version(status.target)}, {status.bytes:,} bytes")
    if status.reason is not None:
        add("because", f"{status.reason.code}: {status.reason.message}")
    if status.repository is not None:
        add("repository", f"{status.repository.code}: {status.repository.message}")
    for name in ("test", "shadow", "probation"):
        measured = getattr(status, name)
        if measured:
            add(name, ", ".join(f"{key} {value:g}" for key, value in measured.items()))
    return "\n".join(lines)


def _version(version: Version) -> str:
    return f"release {version.release} ({version.sha256[:12]})" if version.sha256 else "the file that int8d.toml names"
