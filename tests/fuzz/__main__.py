"""Hostile files by the thousand: ``python -m tests.fuzz model --cases 100000``; see HACKING.md.

``--extension FILE`` has the workers use that build of agent._kernels, with AddressSanitizer; ``--replay CASE`` runs one
case here, and shows what it raises.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz import driver

EXTENSION = "INT8D_FUZZ_EXTENSION"  # in a worker's environment
COUNTS = {"model": 100_000, "tflite": 10_000, "onnx": 10_000}
FAILURES = driver.ROOT / "build" / "fuzz" / "failures"


def _use(extension: str) -> None:
    """Puts another build in the place of agent._kernels, before anything imports that."""
    assert "agent" not in sys.modules
    spec = importlib.util.spec_from_file_location("agent._kernels", extension)
    assert spec
    assert spec.loader
    sys.modules["agent._kernels"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from agent.engine import native

    assert native.available()
    assert native._kernels is module


def environment(extension: str | None = None) -> dict[str, str]:
    """A worker's, on one thread, and with the sanitizers' libraries where it uses such an extension."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if not extension:
        return threads
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    return threads | {
        EXTENSION: str(Path(extension).resolve()),
        "LD_PRELOAD": " ".join(libraries),
        # Only our extension is instrumented: what others leak, or allocate in one way and free in another, is theirs.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:alloc_dealloc_mismatch=0:quarantine_size_mb=16"
        ":handle_segv=1:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=98",
    }


def target_named(name: str) -> driver.Target:
    """Imports no more than the target needs."""
    from tests.fuzz.importers import OnnxFile, TfliteFile
    from tests.fuzz.model_file import ModelFile
    from tests.fuzz.rogue import Rogue

    return {"model": ModelFile, "tflite": TfliteFile, "onnx": OnnxFile, "rogue": Rogue}[name]()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*COUNTS, "rogue"], help="rogue: a target that does all that none may")
    parser.add_argument("--cases", type=int, help="how many, the first ones; the target's full number by default")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--extension", help="a build of agent._kernels with sanitizers")
    parser.add_argument("--replay", type=int, metavar="CASE", help="run this case alone")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if os.environ.get(EXTENSION):
        _use(os.environ[EXTENSION])
    target = target_named(args.target)
    if args.worker:
        driver.work(target, range(*(int(n) for n in args.worker.split(":"))), lambda line: print(line, flush=True))
        return 0
    if args.replay is not None:
        if args.extension and not os.environ.get(EXTENSION):
            os.execve(sys.executable, [sys.executable, "-m", "tests.fuzz", *sys.argv[1:]],
                      {**os.environ, **environment(args.extension)})  # fmt: skip
        target.prepare()
        with tempfile.TemporaryDirectory() as folder:
            print(*driver.run_case(target, args.replay, Path(folder)))
        return 0
    kept = FAILURES / args.target
    driver.clean(kept)
    start = time.monotonic()
    cases = range(args.cases or COUNTS.get(args.target, 10))
    summary = driver.run(target, cases, args.workers, environment(args.extension), kept)
    for reason, count in summary.reasons.most_common(12):
        print(f"{count:8,}  {reason}")
    print(f"{args.target}: {summary}; {time.monotonic() - start:.0f} s")
    for failure in summary.failures[:100]:
        print(f"case {failure.case}: {failure.what}")
    if summary.failures:
        print(f"their files are in {kept}; run one alone with --replay CASE")
    return 1 if summary.failures else 0


if __name__ == "__main__":
    sys.exit(main())
