"""What drift says of the digits model's own pictures, changed or not, and what looking costs: docs/drift.md's figures.

python -m bench.drift [--draws 1000]
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter_ns
from typing import Any

import numpy as np

from agent.config import Drift as Settings
from agent.engine import load
from agent.modelfile import Model, read
from agent.telemetry.drift import Drift
from bench.table import table
from models.zoo import digits
from tests.agent_process import DIGITS


def main() -> None:
    """Prints the table, and a line of the cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--draws", type=int, default=1000)
    draws = parser.parse_args().draws
    model, data = read(DIGITS), digits.split()
    traffic = {
        "the held-out pictures": data.held_out,
        "training pictures": data.train,
        "half as bright": data.held_out // 2,
        "inverted": 255 - data.held_out,
        "threes only": data.held_out[data.held_out_labels == 3],
    }
    rows, looked = [], 0.0
    for name, pictures in traffic.items():
        found, looked = _watch(model, pictures, draws)
        psi = found["psi"]
        measures = (psi["classes"], psi["confidence"], psi["inputs"]["x"])
        rows.append([name, *(f"{x:.3f}" for x in measures), found["verdict"]])
    print("\n".join(table(["traffic", "classes", "confidence", "input", "verdict"], rows)))
    print(f"\nan inference that is looked at costs {looked:.0f} us more")


def _watch(model: Model, pictures: np.ndarray, draws: int) -> tuple[dict[str, Any], float]:
    """The snapshot after so many draws with putting back, and the median microseconds of a look."""
    engine, drift = load(model), Drift(Settings(every=1, window=draws))
    observe = drift.watch("digits", model)
    assert observe is not None
    times = []
    for i in np.random.default_rng(0).integers(0, len(pictures), draws):
        inputs = {"x": pictures[i].reshape(1, 8, 8, 1)}
        outputs = engine.run(inputs)
        start = perf_counter_ns()
        observe(inputs, outputs)
        times.append(perf_counter_ns() - start)
    return drift.snapshot()["digits"], median(times) / 1000


if __name__ == "__main__":
    main()
