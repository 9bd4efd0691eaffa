"""Checkpoints of every family, as transformers writes them: served, they answer as without that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pretune.bundle.bundle import load
from pretune.decoding.decoding import Decoding
from pretune.inference.embed import Embedder
from pretune.inference.generate import TextGenerator
from pretune.models.families import FAMILIES
from pretune.serving.jobs import Generate
from tests.parity.families import SIZES, published
from tests.parity.tasks import POSITIONS, base_folder, texts
from tests.serving.models import same
from tests.serving.test_worker import Turns, alone

pytestmark = pytest.mark.slow
GREEDY = Decoding(max_new_tokens=12, temperature=0.0)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Turns]:
    engine = Turns({"tiny": folder})
    try:
        yield engine
    finally:
        engine.close()


def answered(folder: Path, rows: list[str]) -> None:
    """Compare the answers to requests that are made together with those of each alone."""
    with served(folder) as engine:
        numbers = [engine.ask("predict", [row]) for row in rows]
        engine.turns(*numbers)
        answers = [engine.answer(number)[0] for number in numbers]
    for answer, wanted in zip(answers, alone(folder, rows), strict=True):
        assert same(answer, wanted), (answer, wanted)


@pytest.mark.parametrize("family", list(SIZES))
def test_as_it_was_published(family: str, tmp_path: Path) -> None:
    folder = base_folder(family, tmp_path / "base")
    bundle, rows = load(folder), texts(5)
    with served(folder) as engine:
        abilities = engine.models["tiny"].served.abilities
        assert abilities
        if "embed" in abilities:
            number = engine.ask("embed", rows)
            engine.turns(number)
            expected = Embedder(bundle, device="cpu", precision="float32").embed(rows)
            assert np.allclose(engine.answer(number).vectors, expected, atol=1e-5)
        if "generate" in abilities:
            numbers = [engine.ask("generate", Generate(row, GREEDY)) for row in rows]
            engine.turns(*numbers)
            wanted = TextGenerator.of(bundle, template=None, device="cpu", precision="float32")
            for number, row in zip(numbers, rows, strict=True):
                (whole,) = wanted.generate([wanted.prompt(row)], GREEDY)
                assert "".join(piece.text for piece in engine.pieces(number)) == whole.text
    if "predict" in abilities:
        filled = bundle.task is not None and bundle.task.name == "mask_lm"
        answered(folder, [f"the [MASK] {row}" if filled else row for row in rows])


@pytest.mark.parametrize(
    "family", [name for name in SIZES if "sequence_classification" in FAMILIES[name].heads]
)
def test_as_a_classifier(family: str, tmp_path: Path) -> None:
    folder = base_folder(family, tmp_path / "base")
    names = FAMILIES[family].backbone.config_class.names
    positions = names.get("max_position_embeddings", "max_position_embeddings")
    size = load(folder).tokenizer.vocab_size
    more = {"vocab_size": size, positions: POSITIONS, "pad_token_id": 0}
    published(family, "sequence_classification", **more).save_pretrained(folder)
    answered(folder, texts(5))
