"""What is done to the processes: when, on record; a disk that fills up; a clock that jumps."""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.checker import FAULTS

# An offset to the wall clock alone, read from a mapped file at each call. What waits by the monotonic clock, as it
# should, does not notice.
_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static int64_t offset_s(void) {
    static volatile int64_t *offset;
    if (!offset) {
        int fd = open(getenv("CHAOS_CLOCK"), O_RDONLY);
        void *page = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
        if (page == MAP_FAILED) abort();
        offset = page;
    }
    return *offset;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += offset_s();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec spec;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &spec);
    now->tv_sec = spec.tv_sec;
    now->tv_usec = spec.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


class CannotRun(Exception):
    """This machine can't have the fault; the message says why."""


class Timeline:
    """When which fault held, in the run's folder. Waits in between are the seed's."""

    def __init__(self, folder: Path, seed: str) -> None:
        self._file = open(folder / FAULTS, "w", buffering=1)  # noqa: SIM115
        self.random = random.Random(seed)

    @contextmanager
    def fault(self, what: str) -> Iterator[None]:
        """Holds for the time of the block."""
        began = time.monotonic_ns()
        try:
            yield
        finally:
            record = {"what": what, "began": began, "ended": time.monotonic_ns()}
            self._file.write(json.dumps(record) + "\n")

    def pause(self, least_s: float, most_s: float) -> None:
        time.sleep(self.random.uniform(least_s, most_s))

    def close(self) -> None:
        self._file.close()


class Disk:
    """A small file system in memory at ``folder``. Raises ``CannotRun`` where none can be mounted."""

    def __init__(self, folder: Path, size: str = "4m") -> None:
        if os.geteuid() != 0:
            raise CannotRun("a full disk needs root, to mount one that is small")
        folder.mkdir(parents=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True)
        if done.returncode != 0:
            raise CannotRun(f"a small disk can't be mounted: {done.stderr.decode().strip()}")
        self._folder, self._filler = folder, folder / "filler"

    def fill(self) -> None:
        """Not a byte is left."""
        with open(self._filler, "ab", buffering=0) as file:
            for size in (1 << 16, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError as e:
                    if e.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", self._folder], check=True)


class Clock:
    """A wall clock that jumps, for processes started with ``environment``. Raises ``CannotRun`` without a compiler."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None or sys.platform != "linux":
            raise CannotRun("a clock that jumps needs Linux and a C compiler, for the library that shifts it")
        folder.mkdir(parents=True)
        source, library, offset = folder / "clock.c", folder / "clock.so", folder / "offset"
        source.write_text(_SHIM)
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        offset.write_bytes(struct.pack("q", 0))
        with open(offset, "r+b") as file:
            self._page = mmap.mmap(file.fileno(), 8)
        self.environment = {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(offset)}

    def jump(self, offset_s: int) -> None:
        """To the true time plus ``offset_s``."""
        self._page[:] = struct.pack("q", offset_s)


def choose(random_: random.Random, choices: Sequence[str], count: int) -> list[str]:
    """``count`` of the choices, each as often as the others, in a random order."""
    picked = [choices[i % len(choices)] for i in range(count)]
    random_.shuffle(picked)
    return picked
