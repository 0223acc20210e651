"""Which rule of calibration is the best, measured: ``python -m bench.calibration`` writes docs/calibration.md's table.

Every network is quantized by every rule and run by the engine, on inputs that calibration has not seen; its scores are
held beside those of the float network. The digits network is trained, the others have seeded weights.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.fx import GraphModule

from agent import load
from agent.files import write_atomically
from agent.modelfile import Header, assemble
from bench.table import table
from models.compress.quantize import calibrate, convert
from models.compress.ranges import DEFAULT_RULE
from models.intake.torch_export import to_graph
from models.torchvision_compat import import_torchvision
from models.zoo import digits, imagenet

RULES = ("minmax", "percentile:99.9", "percentile:99.99", "percentile:99.999", "mse", "entropy")
NETWORKS = ("digits", "resnet18", "mobilenet_v2", "efficientnet_b0")
PROBES = 16
PAGE = Path(__file__).parents[1] / "docs" / "calibration.md"
MARK = "<!-- written by python -m bench.calibration -->\n"


@dataclass(frozen=True)
class Case:
    """probes: f32 NCHW; expected: the float network's scores for them; labels: where it knows them."""

    calibrated: GraphModule
    probes: torch.Tensor
    expected: np.ndarray
    labels: np.ndarray | None = None


def case(name: str) -> Case:
    """The network with its pictures."""
    labels = None
    if name == "digits":
        data = digits.split()
        net: torch.nn.Module = digits.train(data)
        calibration, probes = digits.to_input(data.train[:512]), digits.to_input(data.held_out)
        labels = data.held_out_labels
    else:
        models = import_torchvision().models
        net = imagenet.seeded(lambda: models.get_model(name, weights=None), imagenet.SEED)
        calibration, probes = imagenet.synthetic(16, imagenet.SEED), imagenet.synthetic(PROBES, imagenet.SEED + 1)
    with torch.no_grad():
        expected = net(probes).numpy()
    return Case(calibrate(net, list(calibration.split(4))), probes, expected, labels)


def measure(c: Case, rule: str) -> tuple[float, float, float | None]:
    """SQNR of the scores in dB, top-1 agreement with the float network, and accuracy."""
    graph, constants = to_graph(convert(copy.deepcopy(c.calibrated), rule))
    engine = load(assemble(Header(1, "calibration", "1", graph), constants), threads=2)
    inputs = c.probes.permute(0, 2, 3, 1).contiguous().numpy()
    got = np.concatenate([engine.run({"x": x[None]})[graph.outputs[0]] for x in inputs])
    noise = np.square(got.astype(np.float64) - c.expected).sum()
    sqnr = float(10 * np.log10(np.square(c.expected.astype(np.float64)).sum() / noise))
    top = got.argmax(-1)
    agreement = float((top == c.expected.argmax(-1)).mean())
    return sqnr, agreement, None if c.labels is None else float((top == c.labels).mean())


def measured() -> dict[str, dict[str, str]]:
    """Cells of the table, by network and rule: SQNR, and accuracy where it is known, else the agreement in top-1."""
    cells: dict[str, dict[str, str]] = {}
    for name in NETWORKS:  # one at a time, for the memory
        c = case(name)
        cells[name] = {}
        for rule in RULES:
            sqnr, agreement, accuracy = measure(c, rule)
            cells[name][rule] = f"{sqnr:.2f}, {100 * (agreement if accuracy is None else accuracy):.1f} %"
            print(f"{name}, {rule}: {cells[name][rule]}", file=sys.stderr, flush=True)
    return cells


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    cells = measured()
    rows = [[f"{rule} (default)" if rule == DEFAULT_RULE else rule, *(cells[name][rule] for name in NETWORKS)]
            for rule in RULES]  # fmt: skip
    lines = table(["rule", *NETWORKS], rows)
    before = PAGE.read_text().split(MARK)[0]
    write_atomically(PAGE, (before + MARK + "\n".join(lines) + "\n").encode())
    print("\n".join(lines))


if __name__ == "__main__":
    main()
