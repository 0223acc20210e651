"""Runs a target's cases in worker processes, and survives what they do to them.

A case is its number: seed and number give the file, so a failure is replayed by its number alone. A worker says on a
pipe which case it begins and how it ended; one that dies, hangs or grows beyond bounds is charged to the case that it
began, whose file is kept, and another worker takes over behind it.
"""

from __future__ import annotations

import faulthandler
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

MOST_SECONDS = 10  # of a case, on the CPU: a busy machine changes no outcome
MOST_WAIT = 120  # seconds by the clock, for what waits without end
MOST_BYTES = 1 << 30  # resident, of a worker
SEED = 4
ROOT = Path(__file__).parents[2]


class Target(Protocol):
    """What is fuzzed.

    name: on the command line. allowed: the errors that a bad file may raise. allow: also those of these modules
    """

    name: str
    allowed: tuple[type[Exception], ...]

    def prepare(self) -> None:
        """Imports what cases need and makes the seeds; the same in every process."""

    def make(self, rng: np.random.Generator) -> bytes:
        """A case's file: a seed, mutated."""
        ...

    def run(self, path: Path, rng: np.random.Generator) -> None:
        """Reads the file at ``path`` and runs what is valid. Raises one of ``allowed`` where the file is refused.

        What it writes is written into the folder of ``path``, and only where it raises nothing.
        """


@dataclass
class Failure:
    """A case that did what it must not."""

    case: int
    what: str


@dataclass
class Summary:
    """How the cases of a target ended."""

    refused: int = 0
    valid: int = 0
    failures: list[Failure] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)  # the refusals, by their message's form
    slowest: tuple[float, int] = (0.0, -1)  # seconds on the CPU, case
    peak_bytes: int = 0  # resident, of one worker

    def __str__(self) -> str:
        total = self.refused + self.valid + len(self.failures)
        return (
            f"{total:,} cases: {self.refused:,} refused, {self.valid:,} valid, {len(self.failures)} failed; "
            f"slowest {self.slowest[0]:.2f} s (case {self.slowest[1]}), peak {self.peak_bytes / 2**20:.0f} MiB"
        )

    def end(self, case: int, outcome: str, seconds: float, peak: int, reason: str) -> None:
        """Counts a case: outcome is ``valid``, ``refused`` or ``failed``."""
        self.slowest = max(self.slowest, (seconds, case))
        self.peak_bytes = max(self.peak_bytes, peak)
        if outcome == "valid":
            self.valid += 1
        elif outcome == "refused":
            self.refused += 1
            self.reasons[re.sub(r"(?<!\w)'[^']*'|[\d.,-]+", "_", reason)[:100]] += 1
        else:
            self.failures.append(Failure(case, reason))


def case_rng(case: int) -> np.random.Generator:
    """What decides everything about a case."""
    return np.random.default_rng([SEED, case])


def run_case(target: Target, case: int, folder: Path) -> tuple[str, str]:
    """Makes and runs one case in an empty ``folder``; its outcome and, but for ``valid``, why."""
    rng = case_rng(case)
    path = folder / "source"
    path.write_bytes(target.make(rng))
    written: list[str] = []
    with _Watch(folder, written):
        try:
            target.run(path, rng)
            outcome, reason = "valid", ""
        except target.allowed as e:
            outcome, reason = "refused", str(e).replace(str(folder), "")
            if not reason.strip() or isinstance(e.__context__, MemoryError):
                outcome, reason = "failed", f"an error that says nothing: {e!r} from {e.__context__!r}"
        except Exception as e:
            outcome, reason = "failed", _where(e)
    left = sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
    if outcome == "refused" and left != ["source"]:
        outcome, reason = "failed", f"refused ({reason}), and files are left: {left}"
    if written:
        outcome, reason = "failed", f"written outside its folder, or run: {written[:3]}"
    for name in left:
        (folder / name).unlink()
    return outcome, reason


def _where(e: BaseException) -> str:
    """The error, with the innermost lines of this project that it passed."""
    lines = []
    trace = e.__traceback__
    while trace:
        file = trace.tb_frame.f_code.co_filename
        if "site-packages" not in file and str(ROOT) in file:
            lines.append(f"{os.path.relpath(file, ROOT)}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(e).__name__}: {str(e)[:300]} at {' '.join(lines[-3:])}"


class _Watch:
    """Notes what a case opens for writing outside its folder, and the processes and connections it starts."""

    _active: _Watch | None = None
    _hooked = False

    def __init__(self, folder: Path, written: list[str]) -> None:
        self.folder, self.written = str(folder), written

    def __enter__(self) -> None:
        if not _Watch._hooked:  # a hook can't be removed
            _Watch._hooked = True
            sys.addaudithook(_Watch._hook)
        _Watch._active = self

    def __exit__(self, *_: object) -> None:
        _Watch._active = None

    @staticmethod
    def _hook(event: str, args: tuple[Any, ...]) -> None:
        watch = _Watch._active
        if watch is None:
            return
        if event == "open":
            path, _, flags = args
            writes = not isinstance(path, int) and bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if writes and "__pycache__" not in str(path) and not str(path).startswith((watch.folder, "/dev/")):
                watch.written.append(str(path))
        elif event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"):
            watch.written.append(f"{event}{args}"[:200])


def work(target: Target, cases: Sequence[int], report: Callable[[str], None]) -> None:
    """A worker: runs ``cases`` and reports each one's beginning and end, a line each."""
    faulthandler.enable()
    for late in (signal.SIGPROF, signal.SIGALRM):  # says where it is, and ends the process, wherever that is
        faulthandler.register(late, chain=True)
    target.prepare()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        os.chdir(name)
        folder = Path(name) / "case"
        folder.mkdir()
        report("ready")
        for case in cases:
            report(f"begin {case}")
            signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
            signal.alarm(MOST_WAIT)
            start = time.process_time()
            outcome, reason = run_case(target, case, folder)
            seconds = time.process_time() - start
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            line = " ".join(reason.split())
            report(f"end {case} {outcome} {seconds:.4f} {peak} {line}")


def run(
    target: Target, cases: Sequence[int], workers: int, environment: dict[str, str], kept: Path | None = None
) -> Summary:
    """Spreads ``cases`` over worker processes. ``kept``: the folder for the files of cases that failed."""
    summary, lock = Summary(), threading.Lock()
    target.prepare()
    threads = [
        threading.Thread(target=_supervise, args=(target, list(cases[i::workers]), environment, summary, lock))
        for i in range(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if kept:
        for failure in summary.failures:
            kept.mkdir(parents=True, exist_ok=True)
            (kept / f"{target.name}-{failure.case}").write_bytes(target.make(case_rng(failure.case)))
    summary.failures.sort(key=lambda f: f.case)
    return summary


def _supervise(
    target: Target, cases: list[int], environment: dict[str, str], summary: Summary, lock: threading.Lock
) -> None:
    while cases:
        step = cases[1] - cases[0] if len(cases) > 1 else 1
        command = [sys.executable, "-m", "tests.fuzz", target.name, "--worker", f"{cases[0]}:{cases[-1] + 1}:{step}"]
        errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed when it is forgotten)
        worker = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert worker.stdout
        grown = threading.Event()
        threading.Thread(target=_guard, args=(worker, grown), daemon=True).start()
        began: int | None = None
        ready = False
        for line in worker.stdout:
            kind, _, rest = line.rstrip("\n").partition(" ")
            if kind == "ready":
                ready = True
            elif kind == "begin":
                began = int(rest)
            elif kind == "end":
                case, outcome, seconds, peak, *reason = rest.split(" ", 4)
                with lock:
                    summary.end(int(case), outcome, float(seconds), int(peak), reason[0] if reason else "")
                began = None
                cases = cases[1:]
        status = worker.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
        if not ready:
            raise RuntimeError(f"a worker did not start: {said[-3000:]}")
        if began is not None:
            why = f"more than {MOST_BYTES >> 20} MiB" if grown.is_set() else _reason(status, said)
            with lock:
                summary.end(began, "failed", 0.0, 0, why)
            cases = cases[1:]


def _reason(status: int, said: str) -> str:
    if -status in (signal.SIGPROF, signal.SIGALRM):
        return f"more than {MOST_SECONDS} s: " + " ".join(re.findall(r'File ".*?", line \d+ in \w+', said)[:3])
    found = re.search(r"(runtime error: .*|ERROR: \w*Sanitizer: .*|SUMMARY: .*|Fatal Python error: .*)", said)
    frames = re.findall(r"#\d+ 0x\w+ (?:in )?(.+)", said)[:6] or re.findall(r'File ".*?", line \d+ in \w+', said)[:3]
    return f"the process ended with {status}: {found[0] if found else said[-400:]} {frames}"


def _guard(worker: subprocess.Popen[str], grown: threading.Event) -> None:
    """Ends a worker before it takes the machine's memory."""
    page = os.sysconf("SC_PAGE_SIZE")
    while worker.poll() is None:
        try:
            resident = int(Path(f"/proc/{worker.pid}/statm").read_text().split()[1]) * page
        except (OSError, IndexError):
            return
        if resident > MOST_BYTES:
            grown.set()
            worker.kill()
            return
        time.sleep(0.02)


def clean(folder: Path) -> None:
    """Removes what an earlier run kept."""
    shutil.rmtree(folder, ignore_errors=True)
