"""torchvision's classification networks, 224x224, ImageNet's 1000 classes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from agent.modelfile import Preprocess
from models.build import Built, build
from models.compress.ranges import DEFAULT_RULE, parse
from models.torchvision_compat import import_torchvision

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SEED = 18
SIZE = 224


@dataclass(frozen=True)
class Result:
    built: Built
    pretrained: bool


def make(name: str, weights: str = "DEFAULT", calibrate: Path | None = None, seed: int = SEED,
         rule: str = DEFAULT_RULE) -> Result:  # fmt: skip
    """name: one of ``models.zoo.IMAGENET``. weights: ``DEFAULT`` downloads torchvision's, and falls back to seeded
    ones, loudly; ``none`` takes seeded ones.

    calibrate: a folder of pictures; without it, seeded synthetic ones, which suit seeded weights only. rule: of
    calibration, see ``models.compress.ranges``.
    """
    parse(rule)
    models = import_torchvision().models
    enum = models.get_model_weights(name).DEFAULT
    net, pretrained = None, False
    if weights != "none":
        try:
            net, pretrained = models.get_model(name, weights=enum), True
        except Exception as e:  # urllib's, ssl's and torch.hub's errors have no common root
            print(f"WARNING: torchvision's weights could not be downloaded ({e}).", file=sys.stderr)
    pictures = _read_pictures(calibrate) if calibrate else synthetic(16, seed)
    if net is None:
        print(
            f"WARNING: {name} gets SEEDED RANDOM weights. Its predictions mean nothing: for timing and parity only.",
            file=sys.stderr,
        )
        net = seeded(lambda: models.get_model(name, weights=None), seed)
    elif calibrate is None:
        print("WARNING: calibrated on synthetic pictures; give real ones with --calibrate FOLDER.", file=sys.stderr)
    provenance = {
        "recipe": f"int8d-make build {name}",
        "weights": str(enum) if pretrained else f"seeded random ({seed}): for timing and parity only",
        "calibration": f"{'pictures' if calibrate else f'synthetic ({seed})'}, by {rule}",
    }
    preprocess = Preprocess("x", resize=256, crop=(SIZE, SIZE), mean=MEAN, std=STD)
    probes = torch.cat([pictures[:2], synthetic(2, seed + 1)])
    built = build(name, net.eval(), list(pictures.split(4)), probes, enum.meta["categories"], preprocess,
                  provenance, golden=2, rule=rule)  # fmt: skip
    return Result(built, pretrained)


def seeded(architecture: Callable[[], torch.nn.Module], seed: int) -> torch.nn.Module:
    """Random weights whose batch-norms have seen pictures, so that activations keep a sane range."""
    torch.manual_seed(seed)
    net = architecture()
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain mean over the passes
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
    net.train()
    with torch.no_grad():
        for batch in synthetic(16, seed + 2).split(8):
            net(batch)
    return net.eval()


def synthetic(count: int, seed: int, size: int = SIZE) -> torch.Tensor:
    """[count, 3, size, size] f32, normalized: smooth random fields with noise: more like pictures than noise alone."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    pixels = (smooth + 0.1 * torch.randn(count, 3, size, size, generator=generator)).clamp(0, 1)
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def _read_pictures(folder: Path) -> torch.Tensor:
    from PIL import Image

    arrays: list[np.ndarray] = []
    for path in _pictures_in(folder):
        picture = Image.open(path).convert("RGB")
        scale = 256 / min(picture.size)
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BILINEAR
        )
        left, top = (picture.width - SIZE) // 2, (picture.height - SIZE) // 2
        pixels = np.asarray(picture.crop((left, top, left + SIZE, top + SIZE)), np.float32) / 255
        arrays.append((pixels - np.float32(MEAN)) / np.float32(STD))
    return torch.from_numpy(np.stack(arrays).astype(np.float32)).permute(0, 3, 1, 2).contiguous()


def _pictures_in(folder: Path) -> Sequence[Path]:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp"))
    if len(found) < 2:
        raise FileNotFoundError(f"{folder} holds {len(found)} pictures (.jpg, .png, .bmp); calibration needs 2 or more")
    return found
