"""Times int8d and its peers on one network, in turns: a slice of each, over and over, so that a machine whose speed
drifts drifts for all.

Every contender is a process of its own, pinned to as many cores as it has threads, and stopped (SIGSTOP) while it is
not its turn: a pool that spins when idle can't take a core from the one that is measured. Everyone is warm, and
everyone may spin during its turn.

    compare("resnet18.int8.safetensors", ["openvino", "onnxruntime"], threads=1, seconds=2)["ratio"]
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import msgspec
import numpy as np

from agent.errors import BackendError
from agent.modelfile import read
from agent.peers import limits, runners, timing
from agent.peers.contender import Task

SLICE_S = 0.05
READY_S, ANSWER_S = 900.0, 60.0  # torch compiles first


class ContenderFailedError(BackendError):
    """A contender that said why it can't go on, or ended without a word."""


def compare(
    path: str | os.PathLike[str],
    peers: Sequence[str],
    threads: int,
    seconds: float,
    isa: str | None = None,
    tuner_folder: Path | None = None,
) -> dict[str, Any]:
    """Figures of each contender, ours first; see docs/performance.md for what a field means.

    seconds: how long each contender is timed. isa: the most that every contender may use, as far as it can be limited.
    tuner_folder: where int8d looks for the tuner's answer; None: it takes the default choices.
    A peer that is missing or fails is named in ``failed``, with the reason; the others are timed. Raises
    ``BackendError`` for a peer that does not exist, or where int8d itself fails.
    """
    runners.check([*peers])
    read(path)  # a bad file is an error of its own
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = stack.enter_context(Contender("int8d", path, threads, isa, folder, tuner_folder))
        running, failed = {"int8d": ours}, {}
        for name in peers:
            try:
                running[name] = stack.enter_context(Contender(name, path, threads, isa, folder))
            except ContenderFailedError as e:
                failed[name] = str(e)
        times, late = in_turns(running, seconds)
        if "int8d" in late:
            raise ContenderFailedError(late["int8d"])
        failed |= late
        running = {name: contender for name, contender in running.items() if name in times}
        peak = ours.ask({"peak": True})["peak"] * threads
        return _result(running, times, failed, threads, isa, peak)


def in_turns(contenders: Mapping[str, Contender], seconds: float) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Nanoseconds of each call, by contender; and, instead, why one failed."""
    times: dict[str, list[int]] = {name: [] for name in contenders}
    failed: dict[str, str] = {}
    for _ in range(max(1, round(seconds / SLICE_S))):
        for name in [*times]:
            try:
                times[name] += contenders[name].ask({"slice": SLICE_S})["times"]
            except ContenderFailedError as e:
                failed[name] = str(e)
                del times[name]
    return times, failed


def _result(
    running: dict[str, Contender], times: dict[str, list[int]], failed: dict[str, str], threads: int, isa: str | None,
    peak: float,
) -> dict[str, Any]:  # fmt: skip
    ours = running["int8d"]
    macs = ours.described["macs"]
    table: dict[str, dict[str, Any]] = {}
    for name, contender in running.items():
        row = timing.figures(times[name], macs) | {k: contender.described[k] for k in ("ran", "limit")}
        if name != "int8d":
            row |= {"version": contender.described["version"]} | agreement(ours.outputs, contender.outputs)
        table[name] = row
    for row in table.values():
        row["ratio"] = table["int8d"]["p50_ms"] / row["p50_ms"]
    peers = [name for name in table if name != "int8d"]
    best = min(peers, key=lambda name: table[name]["p50_ms"], default=None)
    return {
        "model": ours.described["model"],
        "threads": threads,
        "isa": ours.described["isa"],
        "limit": isa,
        "macs": macs,
        "gmac_per_s": table["int8d"]["gmac_per_s"],
        "peak_gmac_per_s": peak,
        "of_peak": table["int8d"]["gmac_per_s"] / peak if peak else None,
        "best_peer": best,
        "ratio": table[best]["ratio"] if best else None,
        "contenders": table,
        "failed": failed,
    }


def agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Of the first output: the share of elements that are equal, the mean difference relative to the mean magnitude,
    and whether the greatest element is the same."""
    name = next(iter(ours))
    a, b = np.asarray(ours[name], np.float64), np.asarray(theirs[name], np.float64)
    magnitude = float(np.abs(a).mean()) or 1.0
    return {
        "equal": float((a == b).mean()),
        "difference": float(np.abs(a - b).mean()) / magnitude,
        "same_top1": bool(a.argmax() == b.argmax()),
    }


class Contender:
    """The judge's end of ``agent.peers.contender``: ready and stopped once made; runs only within ``ask``."""

    def __init__(
        self, name: str, path: str | os.PathLike[str], threads: int, isa: str | None, folder: Path,
        tuner_folder: Path | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        cores = sorted(os.sched_getaffinity(0))
        npz = folder / f"{name}.npz"
        pinned = cores[:threads] if threads <= len(cores) else []
        answers = str(tuner_folder) if tuner_folder else None
        task = Task(name, os.fspath(path), threads, pinned, isa, str(npz), answers)
        self._log: IO[bytes] = (folder / f"{name}.log").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agent.peers.contender"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, env=os.environ | limits.environment(isa), start_new_session=True,
        )  # fmt: skip
        try:
            self.described = self._exchange(msgspec.json.encode(task), READY_S)
        except BaseException:
            self.close()
            raise
        with np.load(npz) as arrays:
            self.outputs = dict(arrays)
        self._stop()

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Lets the process run for one order. Raises ``ContenderFailedError``."""
        self._signal(signal.SIGCONT)
        try:
            return self._exchange(json.dumps(order).encode(), ANSWER_S)
        finally:
            self._stop()

    def close(self) -> None:
        """Ends the process and all that it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # an order that it did not live to read

    def __enter__(self) -> Contender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stop(self) -> None:
        """Returns once every thread has stopped, or the process has ended."""
        if self._process.poll() is not None:
            return
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass  # it has ended; what it says, or does not, is for _exchange to report

    def _exchange(self, line: bytes, timeout: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ContenderFailedError(self._last_words()) from None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout):
                raise ContenderFailedError(f"no answer within {timeout:.0f} s")
        answer = self._process.stdout.readline()
        if not answer:
            raise ContenderFailedError(self._last_words())
        decoded: dict[str, Any] = json.loads(answer)
        if "error" in decoded:
            raise ContenderFailedError(decoded["error"])
        return decoded

    def _last_words(self) -> str:
        status = self._process.wait(10)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "without a word")
        return f"ended with status {status}: {last.strip()[:300]}"
