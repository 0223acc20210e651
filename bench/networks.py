"""Five networks beside the peers: as fast as each goes, kept to AVX512-VNNI, and the AVX2 kernels beside float32."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from agent import Tuning
from agent.commands.bench import tune
from agent.errors import BackendError
from agent.peers.judge import Contender, compare, in_turns
from agent.peers.timing import figures
from bench.table import paragraph, percent, table

ROOT = Path(__file__).parents[1]
PEERS = ("openvino", "onnxruntime", "litert", "torch")
TARGETS = {
    "resnet18": 0.75,
    "resnet50": 0.92,
    "mobilenet_v2": 0.65,
    "mobilenet_v3_large": 0.40,
    "efficientnet_b0": 0.45,
}
AVX2_TARGET, SCALING_TARGET, SCALED = 0.45, 1.85, ("resnet18", "resnet50")
THREADS = (1, 2)
LIMIT = "avx512vnni"

Result = dict[str, Any]


def path(network: str) -> str:
    """Relative to the repository, as the commands in the document are."""
    return os.path.relpath(ROOT / "models" / "zoo" / f"{network}.int8.safetensors")


def measure() -> dict[str, Any]:
    """All of this file's comparisons; int8d as the tuner would have it."""
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Tuning(folder))


def _measure(tuning: Tuning) -> dict[str, Any]:
    def judge(network: str, peers: Sequence[str], threads: int, seconds: float, isa: str | None = None) -> Result:
        print(f"bench: {network}, {threads} threads{f', {isa}' if isa else ''}", file=sys.stderr, flush=True)
        tune(path(network), threads, "auto", isa or "auto", tuning)
        return compare(path(network), peers, threads, seconds, isa, Path(tuning.folder))

    free = [judge(network, PEERS, threads, 1.5) for network in TARGETS for threads in THREADS]
    limited = []
    if _has_amx():  # elsewhere this is what the first table shows
        limited = [judge(network, PEERS, threads, 1.0, LIMIT) for network in TARGETS for threads in THREADS]
    with _forced("avx2"):
        avx2 = [judge("resnet18", ["onnxruntime-float"], threads, 1.5) for threads in THREADS]
    company = next(r for r in free if (r["model"], r["threads"]) == ("resnet18", THREADS[-1]))["contenders"]
    alone = {}
    for peer in PEERS[:-1]:
        try:
            alone[peer] = judge("resnet18", [peer], THREADS[-1], 1.5)["contenders"][peer]
        except (BackendError, KeyError):  # it failed above, too, and is named there
            continue
    return {"free": free, "limited": limited, "avx2": avx2, "alone": alone,
            "company": {p: company[p] for p in alone if p in company},
            "scaling": {network: scaling(network, 1.5, Path(tuning.folder)) for network in TARGETS}}  # fmt: skip


def scaling(network: str, seconds: float, answers: Path) -> float:
    """int8d's median with one thread over that with two, in turns; answers: the tuner's."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        contenders = {
            str(threads): stack.enter_context(Contender("int8d", path(network), threads, None, Path(folder), answers))
            for threads in THREADS
        }
        times, _ = in_turns(contenders, seconds)
        one, two = (figures(times[str(threads)], 0)["p50_ms"] for threads in THREADS)
    return one / two


def report(measured: dict[str, Any]) -> Iterator[str]:
    """Sections of the document."""
    vs = ",".join(PEERS)
    yield from _section(
        "Against the peers, each as fast as it goes", measured["free"],
        f"int8d bench models/zoo/NETWORK.int8.safetensors --vs {vs} --threads 1,2 --tune",
        "Every runtime picks its instruction set itself.",
    )  # fmt: skip
    if measured["limited"]:
        yield from _section(
            "Kept to AVX512-VNNI on all sides", measured["limited"],
            f"int8d bench models/zoo/NETWORK.int8.safetensors --vs {vs} --threads 1,2 --isa {LIMIT} --tune",
            _limits(measured["limited"]),
        )  # fmt: skip
    yield from ("", "## AVX2 beside float32")
    yield from paragraph(
        "`INT8D_ISA=avx2 int8d bench models/zoo/resnet18.int8.safetensors --vs onnxruntime-float --threads 1,2",
        "--tune`: ResNet18; only int8d is limited.",
    )
    yield ""
    rows = []
    for r in measured["avx2"]:
        theirs = r["contenders"].get("onnxruntime-float", {})
        rows.append([r["threads"], _ms(r["contenders"]["int8d"]), _ms(theirs), _ratio(r), f"{AVX2_TARGET:.2f}",
                     percent(r["of_peak"])])  # fmt: skip
    yield from table(["threads", "int8d p50, ms", "ONNX Runtime float32 p50, ms", "ratio", "target", "of peak"], rows)
    yield from ("", "## Threads")
    yield from paragraph(
        "The median of 1 thread over that of 2: int8d's in turns of its own (`bench/networks.py`), the peers' from the",
        "first table.",
    )
    yield ""
    yield from table(["network", "int8d", "target", *PEERS], _scaling(measured["free"], measured["scaling"]))
    yield from ("", "## Every contender")
    yield from paragraph(
        "Milliseconds of the first table. *equal*: share of the outputs that are the very same as ours; *off*: mean",
        "difference from ours, relative to the outputs' mean magnitude. The weights are seeded, so that roundings add",
        "up, and predictions mean nothing.",
    )
    yield ""
    head = ["network", "threads", "contender", "min", "p50", "p95", "GMAC/s", "int8d / it", "equal", "off"]
    yield from table(head, _contenders(measured["free"]))
    yield ""
    yield from _ran(measured["free"])
    yield from paragraph(
        f"A peer's time must not depend on who else takes part: ResNet18, {THREADS[-1]} threads, p50 in milliseconds,",
        "with int8d alone, and in the company of all.",
    )
    yield ""
    rows = [[p, _ms(row), _ms(measured["company"].get(p, {}))] for p, row in measured["alone"].items()]
    yield from table(["peer", "with int8d alone", "in company"], rows)


def _section(title: str, results: list[Result], command: str, note: str) -> Iterator[str]:
    yield from ("", f"## {title}")
    yield from paragraph(
        f"`{command}`: p50 in milliseconds, batch 1, 224x224. {note} *of peak*: int8d's share of what its instruction",
        "set reaches in registers in the same run, times the threads.",
    )
    yield ""
    head = ["network", "threads", "int8d", *PEERS, "ratio to the best", "target", "GMAC/s", "of peak"]
    rows = []
    failed: dict[str, list[str]] = {}
    for r in results:
        peers = [_ms(r["contenders"].get(p, {})) for p in PEERS]
        rows.append([r["model"], r["threads"], _ms(r["contenders"]["int8d"]), *peers,
                     f"{_ratio(r)} ({r['best_peer']})", f"{TARGETS[r['model']]:.2f}", f"{r['gmac_per_s']:.0f}",
                     f"{percent(r['of_peak'])} ({r['isa']})"])  # fmt: skip
        for peer, why in r["failed"].items():
            failed.setdefault(f"{peer} did not run: {why}", []).append(f"{r['model']} x{r['threads']}")
    yield from table(head, rows)
    for what, where in failed.items():
        yield from paragraph(f"{', '.join(where)}: {what}")


def _limits(results: list[Result]) -> str:
    limits = {name: row["limit"] for r in results for name, row in r["contenders"].items()}
    return "; ".join(f"{name}: {limit}" for name, limit in limits.items()) + "."


def _ran(results: list[Result]) -> Iterator[str]:
    """What was made of the network, by contender, with the comparisons where that differs between them."""
    where: dict[tuple[str, str], list[str]] = {}
    for r in results:
        for name, row in r["contenders"].items():
            where.setdefault((name, row["ran"]), []).append(f"{r['model']} x{r['threads']}")
    for (name, what), places in sorted(where.items()):
        yield f"- {name}: {what}" + ("" if len(places) == len(results) else f" ({', '.join(places)})")


def _scaling(results: list[Result], ours: dict[str, float]) -> Iterator[list[object]]:
    by = {(r["model"], r["threads"]): r["contenders"] for r in results}
    for network in TARGETS:
        one, two = by[network, 1], by[network, 2]
        ratios = {name: f"{one[name]['p50_ms'] / two[name]['p50_ms']:.2f}" for name in one if name in two}
        target = f"{SCALING_TARGET}" if network in SCALED else "–"
        yield [network, f"{ours[network]:.2f}", target, *(ratios.get(p, "–") for p in PEERS)]


def _contenders(results: list[Result]) -> Iterator[list[object]]:
    for r in results:
        for name, row in r["contenders"].items():
            ours = name == "int8d"
            yield [
                r["model"], r["threads"], name, f"{row['min_ms']:.3f}", _ms(row), f"{row['p95_ms']:.3f}",
                f"{row['gmac_per_s']:.0f}", "" if ours else f"{row['ratio']:.2f}",
                "" if ours else f"{100 * row['equal']:.1f} %", "" if ours else f"{100 * row['difference']:.1f} %",
            ]  # fmt: skip


def _ms(row: dict[str, Any]) -> str:
    return f"{row['p50_ms']:.3f}" if row else "–"


def _ratio(result: Result) -> str:
    return "–" if result["ratio"] is None else f"{result['ratio']:.2f}"


def _has_amx() -> bool:
    return "amx_int8" in Path("/proc/cpuinfo").read_text()


@contextmanager
def _forced(isa: str) -> Iterator[None]:
    before = os.environ.get("INT8D_ISA")
    os.environ["INT8D_ISA"] = isa
    try:
        yield
    finally:
        os.environ.pop("INT8D_ISA")
        if before is not None:
            os.environ["INT8D_ISA"] = before
