"""The tests' models that answer differently: do they?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agent.engine import load
from agent.modelfile import read
from tests.agent_process import DIGITS
from tests.variants import variant


def test_a_variant_answers_that_many_classes_further(tmp_path: Path) -> None:
    model = read(variant(tmp_path, 3))
    original, engine = load(DIGITS), load(model)
    for given, golden in zip(read(DIGITS).golden, model.golden, strict=True):
        before = int(np.argmax(original.run(given.inputs)["logits"]))
        answer = engine.run(golden.inputs)["logits"]
        assert int(np.argmax(answer)) == (before + 3) % 10
        np.testing.assert_array_equal(golden.outputs["logits"], answer)


def test_each_tag_gives_another_file(tmp_path: Path) -> None:
    assert len({variant(tmp_path, tag).read_bytes() for tag in (0, 1, 10, 11)}) == 4
