"""The machine and the software that the figures were measured with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

_CLASSES = (
    ("amx_int8", "AMX int8"),
    ("avx512_vnni", "AVX512-VNNI"),
    ("avx_vnni", "AVX-VNNI"),
    ("avx2", "AVX2"),
    ("asimddp", "NEON dot product"),
)
_PACKAGES = ("int8d", "openvino", "onnxruntime", "ai-edge-litert", "torch", "numpy", "paho-mqtt")


def describe() -> list[str]:
    """Lines of Markdown: processor, instruction sets, cores, caches, versions."""
    cpu = _cpuinfo()
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    sets = ", ".join(name for flag, name in _CLASSES if flag in flags) or "none of note"
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    versions = ", ".join(f"{p} {v}" for p in _PACKAGES if (v := _version(p)))
    return [
        f"- {cpu.get('model name', platform.machine())} (family {cpu.get('cpu family', '?')}, model "
        f"{cpu.get('model', '?')}): {sets}",
        f"- {cores} cores; caches of the first: {_caches()}",
        f"- {platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}; load at start "
        f"{load:.1f} (a busy machine makes every figure worse, those of two threads most)",
        f"- {versions}",
    ]


def _cpuinfo() -> dict[str, str]:
    first = Path("/proc/cpuinfo").read_text().split("\n\n", maxsplit=1)[0]
    return {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in first.splitlines())}


def _caches() -> str:
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found.append(f"L{level} {size.removesuffix('K')} KiB")
    return ", ".join(found) or "not known"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
