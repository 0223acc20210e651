"""Keeping a contender to an instruction set, so that two machines can be compared, or one's AMX be left out.

oneDNN (OpenVINO, torch) reads a variable at its start. ONNX Runtime and XNNPACK have no such switch, but the kernel
has: AMX's tiles must be asked for with ``arch_prctl``, and a process whose asking is refused does without. Their AVX512
can't be taken from them. All of this acts on a whole process, for good: contenders are processes of their own.
"""

from __future__ import annotations

import ctypes
import platform
import struct

_ONEDNN = {"avx2": "AVX2", "avxvnni": "AVX2_VNNI", "avx512vnni": "AVX512_CORE_VNNI"}
_WITH_ONEDNN = ("openvino", "torch")


def environment(isa: str | None) -> dict[str, str]:
    """What a contender's environment gets; ``isa``: the most that it may use, None for no limit."""
    if isa is None:
        return {}
    variables = {"INT8D_ISA": isa}
    if isa in _ONEDNN:
        variables["ONEDNN_MAX_CPU_ISA"] = _ONEDNN[isa]
        if isa != "avx512vnni":
            variables["ATEN_CPU_CAPABILITY"] = "avx2"
    return variables


def keep_to(contender: str, isa: str | None) -> str:
    """Called first thing in the contender's process; how it is limited, for the report."""
    if isa is None or isa not in _ONEDNN:
        return ""
    if contender == "int8d":
        return f"INT8D_ISA={isa}"
    if contender in _WITH_ONEDNN:
        return f"ONEDNN_MAX_CPU_ISA={_ONEDNN[isa]}"
    refused = refuse_amx()
    rest = "" if isa == "avx512vnni" else ", AVX512 stays"
    return ("AMX refused by the kernel" if refused else "not limited: no seccomp here") + rest


def refuse_amx() -> bool:
    """Has the kernel refuse this process's requests for AMX's tiles. False where it can't be made to."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    load, equal, answer = 0x20, 0x15, 0x06  # BPF: a word of the call, compare and skip, return
    arch_prctl, request_xcomp = 158, 0x1023
    allow, refuse = 0x7FFF0000, 0x00050001  # with EPERM
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (load, 0, 0, 0),  # the call's number
            (equal, 0, 3, arch_prctl),
            (load, 0, 0, 16),  # its first argument
            (equal, 0, 1, request_xcomp),
            (answer, 0, 0, refuse),
            (answer, 0, 0, allow),
        )
    )
    text = ctypes.create_string_buffer(program)
    filter_ = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(text))
    libc = ctypes.CDLL(None)
    set_no_new_privs, set_seccomp, filter_mode = 38, 22, 2
    unsigned = ctypes.c_ulong
    if libc.prctl(set_no_new_privs, unsigned(1), unsigned(0), unsigned(0), unsigned(0)) != 0:
        return False
    return bool(libc.prctl(set_seccomp, unsigned(filter_mode), ctypes.c_char_p(filter_), 0, 0) == 0)
