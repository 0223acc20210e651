"""A small network for scikit-learn's handwritten digits: 1,797 pictures of 8x8, ten classes.

Small enough to build in seconds and to commit, large enough to hold what real networks hold: a residual block, a
depthwise convolution, pooling, a linear head.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from agent.engine import load
from agent.files import write_atomically
from agent.modelfile import Model, Preprocess, write
from models.build import Parity, build
from models.compress.report import Observed

SEED = 7
HELD_OUT = 360
PICTURES = 40
FOLDER = Path(__file__).parent


class DigitsNet(nn.Module):
    """[n, 1, 8, 8] f32, pixels 0..1, to logits [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32),
        )  # fmt: skip
        self.down = nn.Sequential(
            nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU6(),
            nn.Conv2d(32, 64, 1, bias=False), nn.BatchNorm2d(64), nn.Hardswish(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(self.down(torch.relu(x + self.block(x))))


@dataclass(frozen=True)
class Split:
    """Pictures u8 [n, 8, 8], 0..255, and labels [n], in a fixed random order."""

    train: np.ndarray
    train_labels: np.ndarray
    held_out: np.ndarray
    held_out_labels: np.ndarray


@dataclass(frozen=True)
class Result:
    model: Model
    float_accuracy: float
    int8_accuracy: float
    parity: Parity
    calibration: Sequence[Observed]


def split() -> Split:
    """scikit-learn's digits; 16 grey levels spread over 0..255, so that a PNG holds just what was trained on."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(SEED).permutation(len(data.target))
    pictures = np.rint(data.images * (255 / 16)).astype(np.uint8)[order]
    labels = data.target[order]
    return Split(pictures[HELD_OUT:], labels[HELD_OUT:], pictures[:HELD_OUT], labels[:HELD_OUT])


def to_input(pictures: np.ndarray) -> torch.Tensor:
    """u8 [n, 8, 8] to f32 [n, 1, 8, 8], 0..1."""
    return torch.from_numpy(pictures.astype(np.float32) / np.float32(255)).unsqueeze(1)


def train(data: Split, epochs: int = 60) -> DigitsNet:
    """Adam with a cosine schedule and shifts by a pixel; the same seed gives the same weights."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    net = DigitsNet()
    x, y = to_input(data.train), torch.from_numpy(data.train_labels)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    batch, n = 128, len(x)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * ((n + batch - 1) // batch))
    for _ in range(epochs):
        net.train()
        for rows in torch.randperm(n).split(batch):
            shift = tuple(int(s) for s in torch.randint(-1, 2, (2,)))
            loss = nn.functional.cross_entropy(net(torch.roll(x[rows], shift, (2, 3))), y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def make(seed_threads: int = 1) -> Result:
    """Trains, quantizes and evaluates. One thread, so that sums are in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(seed_threads)
    try:
        data = split()
        net = train(data)
        held = to_input(data.held_out)
        with torch.no_grad():
            float_accuracy = float((net(held).argmax(1).numpy() == data.held_out_labels).mean())
        built = build(
            "digits",
            net,
            list(to_input(data.train[:512]).split(64)),
            held,
            [str(d) for d in range(10)],
            Preprocess("x", mode="L"),
            {},
            usual=held,
        )
    finally:
        torch.set_num_threads(before)
    int8_accuracy = accuracy(built.model, data)
    header = built.model.header
    provenance = {
        "recipe": "int8d-make build digits",
        "data": "scikit-learn load_digits, 1437 to train, 360 held out",
        "seed": str(SEED),
        "float_accuracy": f"{float_accuracy:.4f}",
        "int8_accuracy": f"{int8_accuracy:.4f}",
    }
    header = type(header)(header.format, header.name, header.version, header.graph, header.preprocess,
                          header.postprocess, header.labels, provenance)  # fmt: skip
    return Result(replace(built.model, header=header), float_accuracy, int8_accuracy, built.parity, built.calibration)


def accuracy(model: Model, data: Split) -> float:
    """Top-1 of the int8 engine over the held-out pictures."""
    engine = load(model)
    right = 0
    for picture, label in zip(data.held_out, data.held_out_labels, strict=True):
        x = (picture.astype(np.float32) / np.float32(255)).reshape(1, 8, 8, 1)
        right += int(next(iter(engine.run({"x": x}).values())).argmax() == label)
    return right / len(data.held_out)


def save(result: Result, folder: Path = FOLDER) -> Path:
    """Writes the model and the demo's pictures; returns the model's path."""
    import io

    from PIL import Image

    path = folder / "digits.int8.safetensors"
    write(path, result.model)
    data = split()
    pictures = folder / "digits"
    pictures.mkdir(exist_ok=True)
    labels = {}
    for i in range(PICTURES):
        buffer = io.BytesIO()
        Image.fromarray(data.held_out[i]).save(buffer, "PNG")
        name = f"{i:02d}.png"
        write_atomically(pictures / name, buffer.getvalue())
        labels[name] = int(data.held_out_labels[i])
    write_atomically(pictures / "labels.json", (json.dumps(labels, indent=1) + "\n").encode())
    return path
