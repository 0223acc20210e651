"""Models that a device must not let into service."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from agent.modelfile import Golden, read, write
from agent.repository.release import Release, custom_of
from models.repository.keys import Keys
from models.repository.repository import opened
from tests.repository import Repo
from tests.variants import variant


def golden_differs(folder: Path) -> Path:
    """Its golden outputs are one step of the last place off."""
    model = read(variant(folder, 2))
    first = model.golden[0]
    outputs = {name: array.copy() for name, array in first.outputs.items()}
    for array in outputs.values():
        array.view("u1").reshape(-1)[0] ^= 1
    path = folder / "golden-differs.int8.safetensors"
    write(path, replace(model, golden=(Golden(first.inputs, outputs), *model.golden[1:])))
    return path


def sign(repo: Repo, data: bytes, release: int, name: str = "digits") -> None:
    """Publishes what is no model, as the workbench would not."""
    with opened(repo.folder, Keys(repo.keys), repo.expires) as repository:
        repository.add(f"{name}/{release}.int8.safetensors", data, custom_of(Release(name, release)))
        repository.commit("targets")
