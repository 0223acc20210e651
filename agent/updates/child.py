"""A step of an update in a process of its own: what it parses, maps and runs can't harm the service, and its memory and
its time on the interpreter's lock are not the service's.

    found = run("find", ask, Found, timeout_s=60)         # in the service
    python -m agent.updates.child find                    # what that starts; the ask is JSON on stdin

A step is a module of ``STEPS`` with ``Ask`` (a msgspec.Struct) and ``perform(ask, progress) -> reply``. The child
writes a line of JSON for each ``progress(bytes)``, then one with the reply or with the ``Refused``; once it has, it is
ended. It ends with its parent, too, however that ends. It runs at low priority, is the first that the kernel takes
where memory runs out, leaves no core and gains no privileges.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import IO, Any, TypeVar

import msgspec

from agent.repository.reasons import CODES, Refused
from agent.repository.transport import Progress

STEPS = {"find": "agent.repository.find", "fetch": "agent.repository.fetch", "test": "agent.updates.selftest"}
MODULE = "agent.updates.child"  # what is started; tests plant faults with another
# What a supervisor sends to all processes of a service that it stops: no fault of what a child is about.
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PDEATHSIG, _NO_NEW_PRIVS = 1, 38  # prctl's
_LAST_WORDS = 4000  # characters of a child's stderr that are kept
_LINE_BYTES = 1 << 20
_FILES = 512  # open at once; it has no business with many
NICE = 10
T = TypeVar("T")


class _Line(msgspec.Struct, omit_defaults=True):
    progress: int | None = None
    reply: Any = None
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

    Call it from a thread that lives as long as the step: the kernel ends the child with the thread that started it.

    Raises ``Refused``: the child's own; ``died`` where it ends without a reply; ``late`` past the time;
    ``interrupted`` once stopped, or by a signal that stops services.
    """
    # -P: what lies in the working folder, which a service can write to, is not imported.
    command = [sys.executable, "-P", "-m", MODULE, step, str(os.getpid())]
    pipe = subprocess.PIPE
    # A session of its own: a terminal's Ctrl-C is for the parent.
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    ended = threading.Event()
    why: list[str] = []
    words: list[bytes] = []
    watch = threading.Thread(target=_watch, args=(process, timeout_s, stop, ended, why), daemon=True)
    listen = threading.Thread(target=_listen, args=(process.stderr, words), daemon=True)
    watch.start()
    listen.start()
    answer = None
    try:
        with suppress(BrokenPipeError):  # it says why on stderr
            process.stdin.write(msgspec.json.encode(ask))
            process.stdin.flush()
        with suppress(BrokenPipeError):
            process.stdin.close()
        answer = _read(process.stdout, progress)
        if answer is None:
            process.wait()
    finally:
        ended.set()
        process.kill()
        process.wait()
        watch.join()
        listen.join()
        process.stdout.close()
        process.stderr.close()
    if answer is not None:
        return _taken(answer, reply, step, died)
    if why == ["stop"] or -process.returncode in _STOPS:
        raise Refused("interrupted")
    if why == ["late"]:
        raise Refused(late, f"step '{step}' took longer than {timeout_s:g} s")
    told = b"".join(words).decode(errors="replace").strip().splitlines()
    raise Refused(died, f"step '{step}' ended with {_ending(process.returncode)}" + (f": {told[-1]}" if told else ""))


def _taken(answer: _Line, reply: type[T], step: str, died: str) -> T:
    """What a child says is checked: what it ran may have written into its memory."""
    if answer.code in CODES:
        raise Refused(answer.code, answer.message)
    try:
        return msgspec.convert(answer.reply, reply)
    except msgspec.ValidationError as e:
        raise Refused(died, f"step '{step}' ended with a reply that can't be understood: {e}") from e


def _ending(status: int) -> str:
    if status == -signal.SIGKILL:
        return "signal 9, as the kernel ends what memory runs out for"
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def _read(stream: IO[bytes], progress: Progress) -> _Line | None:
    while line := stream.readline(_LINE_BYTES):
        try:
            said = msgspec.json.decode(line, type=_Line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # something printed by a library
        if said.progress is not None:
            progress(said.progress)
        elif said.code or said.reply is not None:
            return said
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


def _listen(stream: IO[bytes], words: list[bytes]) -> None:
    while data := os.read(stream.fileno(), 65536):
        words.append(data)
        words[:] = [b"".join(words)[-_LAST_WORDS:]]


def main(argv: list[str]) -> int:
    """In the child."""
    for number in _STOPS:  # the parent ends it, or the parent's end does
        signal.signal(number, signal.SIG_IGN)
    step, parent = argv[1], int(argv[2])
    try:
        prctl = ctypes.CDLL(None).prctl
        prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    except AttributeError:
        pass  # another C library; the parent's end closes our stdout
    if os.getppid() != parent:
        return 1  # it ended before it could be told
    _step_back()
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
        tell(_Line(reply=result))
    return 0


def _step_back() -> None:
    """Behind the service in all that is scarce, as far as this process may."""
    with suppress(OSError):  # a unit's filter of system calls
        os.nice(NICE)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
    limit(resource.RLIMIT_CORE, 0)  # it would hold keys and plaintext
    limit(resource.RLIMIT_NOFILE, _FILES)


def limit(kind: int, most: int) -> None:
    """Lowers a soft limit of this process, of ``resource``; never raises it."""
    soft, hard = resource.getrlimit(kind)
    most = most if soft == resource.RLIM_INFINITY else min(soft, most)
    with suppress(OSError, ValueError):
        resource.setrlimit(kind, (most, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
