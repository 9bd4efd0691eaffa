from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import transformers

import pretune
from pretune.bundle.bundle import Bundle, load
from pretune.errors import DataError
from pretune.tasks.masked_lm.mask_lm import MaskLm, MaskLmOptions, MaskPrediction


@pytest.fixture(scope="module")
def theirs(tiny_folder: Path) -> transformers.BertForMaskedLM:
    torch.manual_seed(0)
    config = transformers.BertConfig.from_pretrained(tiny_folder)
    model = transformers.BertForMaskedLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, theirs: transformers.BertForMaskedLM, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("mlm")
    theirs.save_pretrained(place)
    (place / "vocab.txt").write_bytes((tiny_folder / "vocab.txt").read_bytes())
    return place


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return load(folder)


def test_a_masked_lm_knows_its_task(bundle: Bundle) -> None:
    assert isinstance(bundle.task, MaskLm)


def test_candidates_are_those_of_transformers(
    bundle: Bundle, theirs: transformers.BertForMaskedLM
) -> None:
    texts = ["the [MASK] film [MASK]", "a [MASK]", "[MASK]"]
    answers = pretune.predict(bundle, texts)
    mask = bundle.tokenizer.special_id("mask_token")
    for text, answer in zip(texts, answers, strict=True):
        assert isinstance(answer, MaskPrediction)
        (encoded,) = bundle.tokenizer.encode([text])
        with torch.no_grad():
            scores = theirs(torch.tensor([encoded.ids])).logits[0].softmax(-1)
        places = [i for i, token in enumerate(encoded.ids) if token == mask]
        assert len(answer.gaps) == len(places)
        for gap, place in zip(answer.gaps, places, strict=True):
            best = scores[place].topk(5)
            assert [c.token for c in gap] == bundle.tokenizer.tokens(best.indices.tolist())
            assert [c.score for c in gap] == pytest.approx(best.values.tolist(), abs=1e-6)
    json.dumps(answers[0].to_dict())


def test_a_text_without_a_gap_is_an_error(bundle: Bundle) -> None:
    with pytest.raises(DataError, match=r"no \[MASK\]"):
        pretune.predict(bundle, ["no gap"])


def test_pseudo_perplexity_masks_each_token_in_turn(
    bundle: Bundle, theirs: transformers.BertForMaskedLM, tmp_path: Path
) -> None:
    texts = ["the good film", "bad"]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in texts), encoding="utf-8")
    actual = pretune.evaluate(bundle, path)
    mask = bundle.tokenizer.special_id("mask_token")
    losses = []
    for one in bundle.tokenizer.encode(texts):
        for place in range(1, len(one.ids) - 1):
            ids = list(one.ids)
            truth, ids[place] = ids[place], mask
            with torch.no_grad():
                scores = theirs(torch.tensor([ids])).logits[0, place].log_softmax(-1)
            losses.append(-float(scores[truth]))
    assert actual.details["tokens"] == len(losses) == 4
    assert actual.metrics["loss"] == pytest.approx(sum(losses) / 4, abs=1e-5)
    assert actual.metrics["pseudo_perplexity"] == pytest.approx(math.exp(sum(losses) / 4), rel=1e-4)


def test_top_k(folder: Path) -> None:
    bundle = load(folder, task=MaskLm(MaskLmOptions(max_length=16, top_k=2)))
    (answer,) = pretune.predict(bundle, ["[MASK]"])
    assert isinstance(answer, MaskPrediction)
    assert len(answer.gaps[0]) == 2


def test_a_new_head_has_no_leftovers_of_memory(tiny_folder: Path) -> None:
    """In deterministic mode torch fills fresh memory with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        actual = load(tiny_folder, task=MaskLm(MaskLmOptions(max_length=16)))
    finally:
        torch.use_deterministic_algorithms(False)
    assert actual.report is not None
    assert "bias" in actual.report.missing
    for name, value in actual.model.state_dict().items():
        assert bool(value.isfinite().all()), name
    assert bool((actual.model.get_parameter("bias") == 0).all())
