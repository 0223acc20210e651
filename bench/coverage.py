"""docs/coverage.md: what of torchvision's networks is native, how near int8 comes to float, and how fast it is.

    python -m bench.coverage [NETWORK ...]

One network of each family by default, with seeded weights, at 224x224; about ten minutes. The document's first part,
which operator runs where, is left as it is; with networks named, the table is printed and nothing is written.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.utils._pytree as pytree

from agent import load
from agent.coverage import share
from agent.engine import native
from agent.modelfile import Header, assemble
from bench.machine import describe
from bench.table import paragraph, table
from models.compress.quantize import quantize
from models.intake.torch_export import to_graph
from models.zoo.imagenet import architecture, seeded, size_of, synthetic

DOCUMENT = Path(__file__).parents[1] / "docs" / "coverage.md"
HEADING = "## torchvision's networks"
NETWORKS = (
    "alexnet", "vgg11_bn", "squeezenet1_1", "googlenet", "inception_v3", "densenet121", "resnet18", "resnext50_32x4d",
    "wide_resnet50_2", "regnet_y_400mf", "mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0", "shufflenet_v2_x1_0",
    "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny", "vit_b_16", "swin_t", "swin_v2_t", "maxvit_t",
    "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50", "ssdlite320_mobilenet_v3_large",
)  # fmt: skip
SEED, CALIBRATION, PROBES, SECONDS = 18, 8, 4, 2.0


@dataclass(frozen=True)
class Row:
    """Of one network: counts of operators, the share of MACs, decibels, the share of equal answers, milliseconds."""

    network: str
    native_operators: int
    operators: int
    macs: int
    of_macs: float
    fallen: str
    sqnr: tuple[float, ...]  # by output
    agreement: float
    p50: float


def measure(name: str) -> Row:
    """Quantizes, brings over, runs."""
    size = size_of(name)
    net = seeded(lambda: architecture(name), SEED, size, 8)
    converted = quantize(net, list(synthetic(CALIBRATION, SEED, size).split(1)))
    graph, constants = to_graph(converted)
    engine = load(assemble(Header(1, name, "1", graph), constants))
    counted = share(graph, constants)
    ours, theirs = [], []
    probes = synthetic(PROBES, SEED + 1, size).split(1)
    with torch.no_grad():
        for probe in probes:
            theirs.append([y.numpy() for y in pytree.tree_leaves(net(probe))])
            ours.append(list(engine.run({"x": nhwc(probe)}).values()))
    sqnr = tuple(decibels(a, b) for a, b in zip(*(map(np.concatenate, zip(*s, strict=True)) for s in (theirs, ours)),
                                                strict=True))  # fmt: skip
    last = len(theirs[0]) - 1 if name.startswith("ssd") else 0  # scores come behind boxes
    axis = -1 if name.startswith("ssd") else 1
    same = [(a[last].argmax(axis) == b[last].argmax(axis)).mean() for a, b in zip(theirs, ours, strict=True)]
    times, until = [], time.perf_counter() + SECONDS
    while len(times) < 3 or time.perf_counter() < until:
        start = time.perf_counter()
        engine.run({"x": nhwc(probes[0])})
        times.append(time.perf_counter() - start)
    fallen = ", ".join(f"{f.operator.removeprefix('aten::')} ({f.count})" for f in counted.fallbacks)
    return Row(name, counted.native_operators, counted.operators, counted.macs, counted.of_macs, fallen, sqnr,
               float(np.mean(same)), 1000 * statistics.median(times))  # fmt: skip


def nhwc(picture: torch.Tensor) -> np.ndarray:
    """[1, c, h, w] as the engine takes it."""
    return np.ascontiguousarray(picture.permute(0, 2, 3, 1).numpy())


def decibels(reference: np.ndarray, measured: np.ndarray) -> float:
    """The ratio of the reference's power to that of the difference."""
    noise = float(((reference.astype(np.float64) - measured) ** 2).sum())
    return float("inf") if noise == 0 else float(10 * np.log10((reference.astype(np.float64) ** 2).sum() / noise))


def section(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of Markdown."""
    yield HEADING
    yield from paragraph(
        f"`make coverage`: seeded weights, 224x224 (ssdlite 320x320), calibrated on {CALIBRATION} synthetic pictures,",
        f"compared with the float module on {PROBES} others. *operators* and *MACs* are native of all; *SQNR* is the",
        "output's (of several, in their order); *top-1* the share of equal answers (of a map, by pixel; of ssdlite, by",
        f"box); *p50* that of one thread, with {native.resolve_isa('auto')}, untuned. Seeded weights spread their",
        "answers thinly, so that top-1 says less than SQNR; and they magnify what a layer rounds in all that follow,",
        "so that SQNR falls with depth.",
    )
    yield ""
    cells = [
        [r.network, f"{r.native_operators} / {r.operators}", f"{r.macs / 1e9:.2f} G", f"{100 * r.of_macs:.1f} %",
         r.fallen or "–", ", ".join(f"{s:.1f}" for s in r.sqnr), f"{100 * r.agreement:.0f} %", f"{r.p50:.1f}"]
        for r in rows
    ]  # fmt: skip
    yield from table(["network", "operators", "MACs", "of MACs", "in torch", "SQNR, dB", "top-1", "p50, ms"], cells)
    yield ""
    yield from describe()


def main(names: Sequence[str]) -> None:
    rows = []
    for name in names or NETWORKS:
        start = time.perf_counter()
        rows.append(measure(name))
        print(f"coverage: {rows[-1]}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    text = "\n".join(section(rows)) + "\n"
    if names:
        print(text)
    else:
        head = DOCUMENT.read_text().split(HEADING)[0].rstrip()
        DOCUMENT.write_text(f"{head}\n\n{text}")


if __name__ == "__main__":
    main(sys.argv[1:])
