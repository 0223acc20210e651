"""``int8d-make publish``: a model file becomes a signed release."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from models.commands import signing

EPILOG = """The first release makes the repository. Serve the folder with any web server, and run 'int8d-make repo
refresh' each day: without it, devices take the repository for frozen once its timestamp has expired."""
ROLLOUT = (
    "which share of the devices takes it: 10%%, or in stages 5%%,25%%@24h,100%%@72h, counted from now (s, m, h, d), or "
    "from a date as 2026-12-01T08:00 (default 100%%)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("model", type=Path, metavar="MODEL", help="a model file")
    parser.add_argument("--name", required=True, help="the model's name, as in the devices' [[model]]")
    parser.add_argument("--release", type=int, required=True, metavar="N", help="its number, above each one before")
    signing.add_arguments(parser)
    parser.add_argument("--device-group", default="", metavar="G", help="for the devices of a group only")
    parser.add_argument(
        "--encrypt-to", action="extend", nargs="+", default=[], metavar="RECIPIENT",
        help="age public keys (age1…) of the devices that can read it, or @FILE with one a line",
    )  # fmt: skip
    parser.add_argument("--rollout", default="100", metavar="SPEC", help=ROLLOUT)
    parser.add_argument(
        "--abort-threshold", type=float, default=0.1, metavar="SHARE",
        help="of devices on which it failed, from which 'rollout status --abort' stops it (default 0.1)",
    )  # fmt: skip
    signing.add_expiry(parser)


def run(args: argparse.Namespace) -> int:
    with signing.writing(args, create=True) as repository:
        from agent.repository.release import Rollout
        from models.repository.publish import publish, recipients_of
        from models.repository.rollout import described, stages, threshold

        now = time.time()
        rollout = Rollout(stages(args.rollout, now), abort_threshold=threshold(args.abort_threshold))
        recipients = recipients_of(args.encrypt_to)
        release = publish(repository, args.model, args.name, args.release, args.device_group, recipients, rollout)
        file = repository.find(args.name, args.release, args.device_group).file
        whom = f"group {args.device_group}" if args.device_group else "all devices"
        sealed = f", encrypted to {len(recipients)}" if recipients else ""
        print(f"published {args.name} release {args.release} ({file.length:,} bytes{sealed}) for {whom}: "
              f"{described(release.rollout, now)}")  # fmt: skip
        print(
            f"valid until {repository.timestamp.signed.expires:%Y-%m-%d %H:%M}Z: run 'int8d-make repo refresh' before"
        )
    return 0
