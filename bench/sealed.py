"""What the encryption of messages costs, in microseconds and bytes, on one core.

python -m bench.sealed [--rounds 200]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

from agent.wire.hpke import PrivateKey
from agent.wire.sealed import Receiver, Sender
from bench.table import table

TOPIC, CORRELATION = "int8d/box1/v2/models/digits/infer", b"0123456789abcdef0123456789abcdef"
REPLY = 500  # bytes, of the digits model
SIZES = {"a digit, 200 bytes": 200, "a small picture, 20 kB": 20_000, "a camera's picture, 150 kB": 150_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    print("\n".join(table(
        ("request", "sender: seal", "device: open", "device: seal the reply", "sender: open it", "bytes more"),
        [(name, *_row(size, rounds)) for name, size in SIZES.items()],
    )))  # fmt: skip


def _row(size: int, rounds: int) -> list[str]:
    camera, box = PrivateKey.generate(), PrivateKey.generate()
    sender, receiver = Sender(camera, box.public), Receiver(box, [camera.public])
    picture, answer = bytes(size), bytes(REPLY)
    request = sender.seal(picture, "image/jpeg", TOPIC, CORRELATION)
    opened = receiver.open(request, TOPIC, CORRELATION)
    reply = opened.reply(answer, "application/json", TOPIC, CORRELATION)
    steps = (
        lambda: sender.seal(picture, "image/jpeg", TOPIC, CORRELATION),
        lambda: receiver.open(request, TOPIC, CORRELATION),
        lambda: opened.reply(answer, "application/json", TOPIC, CORRELATION),
        lambda: sender.open(reply, TOPIC, CORRELATION, request),
    )
    more = f"{len(request) - size} and {len(reply) - REPLY}"
    return [*(f"{_microseconds(step, rounds):.0f} µs" for step in steps), more]


def _microseconds(step: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        step()
        taken.append(time.perf_counter_ns() - start)
    return median(taken) / 1000


if __name__ == "__main__":
    main()
