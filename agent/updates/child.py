"""A step of an update in a process of its own: what it parses, maps and runs can't harm the service, and its memory and
its time on the interpreter's lock are not the service's.

    found = run("find", ask, Found, timeout_s=60)         # in the service
    python -m agent.updates.child find                    # what that starts; the ask is JSON on stdin

A step is a module of ``STEPS`` with ``Ask`` (a msgspec.Struct) and ``perform(ask, progress) -> reply``. The child
writes a line of JSON for each ``progress(bytes)``, then one with the reply or with the ``Refused``. It ends with its
parent, however that ends, and runs at low priority.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from agent.updates.reasons import CODES, Refused

STEPS = {"find": "agent.updates.find", "fetch": "agent.updates.fetch", "test": "agent.updates.selftest"}
_PDEATHSIG = 1  # prctl's
_LAST_WORDS = 4000  # characters of a child's stderr that are kept
_LINE_BYTES = 1 << 20
NICE = 10
Progress = Callable[[int], None]
T = TypeVar("T")


class _Line(msgspec.Struct, omit_defaults=True):
    progress: int | None = None
    reply: msgspec.Raw | None = None
    code: str = ""
    message: str = ""


def run(
    step: str,
    ask: msgspec.Struct,
    reply: type[T],
    timeout_s: float,
    progress: Progress = lambda done: None,
    stop: threading.Event | None = None,
    died: str = "crashed",
    late: str = "hung",
) -> T:
    """Performs a step in a child. timeout_s: from start to end, 0: no limit. stop: set, it is given up.

    Raises ``Refused``: the child's own; ``died`` where it ends without a reply; ``late`` past the time;
    ``interrupted`` once stopped.
    """
    command = [sys.executable, "-m", "agent.updates.child", step, str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        ended = threading.Event()
        why: list[str] = []
        watch = threading.Thread(target=_watch, args=(process, timeout_s, stop, ended, why), daemon=True)
        words: list[bytes] = []
        listen = threading.Thread(target=_listen, args=(process.stderr, words), daemon=True)
        watch.start()
        listen.start()
        try:
            try:
                process.stdin.write(msgspec.json.encode(ask))
                process.stdin.close()
            except BrokenPipeError:
                pass  # it says why on stderr
            answer = _read(process.stdout, progress)
            process.wait()
        finally:
            ended.set()
            process.kill()
            watch.join()
            listen.join()
    if answer is not None and answer.reply is not None:
        return msgspec.json.decode(answer.reply, type=reply)
    if answer is not None and answer.code in CODES:
        raise Refused(answer.code, answer.message)
    if why == ["stop"]:
        raise Refused("interrupted")
    if why == ["late"]:
        raise Refused(late, f"step '{step}' took longer than {timeout_s:g} s")
    told = b"".join(words).decode(errors="replace").strip().splitlines()
    ending = f"signal {-process.returncode}" if process.returncode < 0 else f"exit status {process.returncode}"
    raise Refused(died, f"step '{step}' ended with {ending}" + (f": {told[-1]}" if told else ""))


def _read(stream: Any, progress: Progress) -> _Line | None:
    while line := stream.readline(_LINE_BYTES):
        try:
            said = msgspec.json.decode(line, type=_Line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # something printed by a library
        if said.progress is None:
            return said
        progress(said.progress)
    return None


def _watch(
    process: subprocess.Popen[bytes], timeout_s: float, stop: threading.Event | None, ended: threading.Event,
    why: list[str],
) -> None:  # fmt: skip
    until = time.monotonic() + timeout_s if timeout_s else float("inf")
    while not ended.wait(0.05):
        stopped = stop is not None and stop.is_set()
        if stopped or time.monotonic() > until:
            why.append("stop" if stopped else "late")
            process.kill()
            return


def _listen(stream: Any, words: list[bytes]) -> None:
    while data := stream.read1(65536):
        words.append(data)
        words[:] = [b"".join(words)[-_LAST_WORDS:]]


def main(argv: list[str]) -> int:
    """In the child."""
    step, parent = argv[1], int(argv[2])
    try:
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    except AttributeError:
        pass  # another C library; the parent's end closes our stdout
    if os.getppid() != parent:
        return 1  # it has ended already
    os.nice(NICE)
    module = importlib.import_module(STEPS[step])
    ask = msgspec.json.decode(sys.stdin.buffer.read(), type=module.Ask)
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print is not the reply

    def tell(line: _Line) -> None:
        os.write(out, msgspec.json.encode(line) + b"\n")

    try:
        result = module.perform(ask, lambda done: tell(_Line(progress=done)))
    except Refused as e:
        tell(_Line(code=e.code, message=str(e)))
    else:
        tell(_Line(reply=msgspec.Raw(msgspec.json.encode(result))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
