from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pretune.bundle.bundle import Bundle, save
from pretune.errors import DataError, RunError
from pretune.inference.fill import MaskFiller
from pretune.inference.predict import Predictor
from tests.tasks.every_task import CASES

TEXTS = ["the [MASK] film", "[MASK] film was [MASK] bad!"]


@pytest.fixture(scope="module")
def filling(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return CASES["mask_lm"].bundle(tiny_folder, tmp_path_factory.mktemp("fill"))


@pytest.fixture(scope="module")
def filler(filling: Bundle) -> MaskFiller:
    return MaskFiller(Predictor(filling, device="cpu", precision="float32"))


@pytest.fixture(scope="module")
def theirs(filling: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The pipeline of transformers for the same model."""
    from transformers import pipeline

    folder = tmp_path_factory.mktemp("saved") / "model"
    folder.mkdir()
    save(filling, folder)
    return pipeline("fill-mask", model=str(folder), device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("targets", [None, ["good", "bad", "un", "good"]])
def test_gaps_are_filled_as_by_the_pipeline_of_transformers(
    filler: MaskFiller, theirs: Any, targets: list[str] | None
) -> None:
    more = {} if targets is None else {"targets": targets}
    right = [theirs(text, top_k=3, **more) for text in TEXTS]
    right[0] = [right[0]]
    filled = filler.fill(TEXTS, top_k=3, targets=targets)
    for text, own in zip(filled, right, strict=True):
        for gap, entries in zip(text, own, strict=True):
            for entry, expected in zip(gap, entries, strict=True):
                assert entry["token"] == expected["token"]
                assert entry["score"] == pytest.approx(expected["score"], abs=1e-5)
                assert entry["token_str"] == expected["token_str"]
                assert entry["sequence"] == expected["sequence"]


def test_a_target_that_is_no_token_is_its_first_one(filler: MaskFiller, filling: Bundle) -> None:
    ((entries,),) = filler.fill(TEXTS[:1], targets=["unaffable"])
    (first, *_) = filling.tokenizer.encode_bare(["unaffable"])[0].ids
    assert [entry["token"] for entry in entries] == [first]
    ((by_id,),) = filler.fill(TEXTS[:1], targets=[first])
    assert by_id == entries


def test_what_cannot_be_filled_is_said(
    filler: MaskFiller, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"no \[MASK\]"):
        filler.fill(["the film"])
    with pytest.raises(DataError, match="'☃' is not in the model's vocabulary"):
        filler.fill(TEXTS, targets=["☃"])
    other = CASES["classify"].bundle(tiny_folder, tmp_path)
    with pytest.raises(RunError, match="it fills no gaps"):
        MaskFiller(Predictor(other, device="cpu"))
